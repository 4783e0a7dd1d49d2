"""Who connects the accounts, and connects them again; and the time that passes for them."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from django.utils import timezone

from django_infusionsoft.choices import Reason, Trouble
from django_infusionsoft.database import DatabaseNow
from django_infusionsoft.exceptions import DecryptionError, InfusionsoftError
from django_infusionsoft.history import fingerprint
from django_infusionsoft.models import ApplicationState, Credential
from django_infusionsoft.sandbox import Sandbox

# Pauses of the breaker's that are longer than this are not those of a probe under way.
PROBE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Loss:
    """A grant that the site has lost, by its row."""

    account: str
    generation: int
    presented: str
    """The fingerprint of the row's refresh token."""
    status: str
    reason: str
    is_live: bool
    """Whether Keap takes the row's refresh token."""


class People:
    """See to it that the accounts are connected, with some delay."""

    def __init__(self, sandbox: Sandbox, *, patience_seconds: float) -> None:
        """
        :param patience_seconds: longer than any process is stopped for: until then it may still
            come back with the reply.
        """
        self._sandbox = sandbox
        self._patience_seconds = patience_seconds
        self._seen: dict[tuple[int, int, str], float] = {}
        self.imports = 0
        self.losses: list[Loss] = []
        self.asked_for: Counter[str] = Counter()
        """How often a person had a refresh token presented all the same."""
        self.rescued = 0
        """How often that was the answer."""

    def connect(self, account: str) -> None:
        """Authorize the site for an account, anew if need be."""
        reply = self._sandbox.issue(account)
        Credential.objects.import_tokens(
            account=account,
            access_token=reply["access_token"],
            refresh_token=reply["refresh_token"],
            expires_at=timezone.now() + timedelta(seconds=reply["expires_in"]),
        )
        self.imports += 1

    def look(self, *, at_once: bool = False) -> None:
        """See who needs a person, and be one for those who have needed one for long enough."""
        patience_seconds = 0.0 if at_once else self._patience_seconds
        now = time.monotonic()
        seen = {}
        for credential in Credential.objects.needs_reauthorization():
            key = (credential.pk, credential.generation, credential.reason)
            seen[key] = self._seen.get(key, now)
            if now - seen[key] >= patience_seconds:
                del seen[key]
                self._help(credential)
        self._seen = seen

    def inspect(self) -> list[Loss]:
        """Return every grant that is lost by now."""
        return [
            loss
            for each in Credential.objects.all()
            if not self._is_well(loss := self._loss(each))
        ]

    def let_time_pass(self) -> None:
        """Bring on what waits for its time after a failure; nobody's lease ends sooner."""
        waiting = Credential.objects.connected().filter(lease_until__isnull=True)
        waiting.filter(failures__gt=0, refresh_at__gt=DatabaseNow()).update(
            refresh_at=DatabaseNow()
        )
        troubled = ApplicationState.objects.exclude(trouble=Trouble.NONE)
        troubled.filter(probe_at__gt=DatabaseNow() + timedelta(seconds=PROBE_SECONDS)).update(
            probe_at=DatabaseNow()
        )

    def _help(self, credential: Credential) -> None:
        loss = self._loss(credential)
        if credential.reason == Reason.UNANSWERED:
            self.asked_for[loss.presented] += 1
            with suppress(InfusionsoftError):  # its row tells the next look
                credential.refresh()
                self.rescued += 1
            return
        self.connect(loss.account)
        self.losses.append(loss)

    def _loss(self, credential: Credential) -> Loss:
        try:
            refresh_token = credential.refresh_token
        except DecryptionError:
            refresh_token = ""
        live = {grant.refresh_token for grant in self._sandbox.live_grants}
        return Loss(
            account=str(credential),
            generation=credential.generation,
            presented=fingerprint(refresh_token),
            status=credential.status,
            reason=credential.reason,
            is_live=refresh_token in live,
        )

    def _is_well(self, loss: Loss) -> bool:
        return loss.status == Credential.Status.CONNECTED and loss.is_live
