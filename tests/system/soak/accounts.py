"""Connects the accounts, and reconnects those that were lost."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from django.utils import timezone

from django_infusionsoft.choices import BlockReason, Reason
from django_infusionsoft.exceptions import DecryptionError, InfusionsoftError
from django_infusionsoft.models import ApplicationState, Credential
from django_infusionsoft.monitoring.history import fingerprint
from django_infusionsoft.sandbox import Sandbox
from django_infusionsoft.storage.database import DatabaseNow

# Delays of the breaker that are longer than this do not belong to a probe in progress.
PROBE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Grant:
    """What a credential's row says about its grant, and whether Keap agrees."""

    account: str
    generation: int
    presented: str
    """The fingerprint of the row's refresh token."""
    status: str
    reason: str
    is_live: bool
    """Whether Keap accepts the row's refresh token."""

    @property
    def is_intact(self) -> bool:
        return self.status == Credential.Status.CONNECTED and self.is_live


class Accounts:
    """Does what users do: connects the accounts, and reconnects lost ones after a while."""

    def __init__(self, sandbox: Sandbox, *, delay_seconds: float) -> None:
        """
        :param delay_seconds: how long an account has to be lost before it is reconnected. Longer
            than any process is stopped, since such a process may still return with the reply.
        """
        self._sandbox = sandbox
        self._delay_seconds = delay_seconds
        self._lost_since: dict[tuple[int, int, str], float] = {}
        self.imports = 0
        self.lost: list[Grant] = []
        self.forced: Counter[str] = Counter()
        """How often each refresh token was presented by force, by fingerprint."""
        self.forced_successes = 0

    def connect(self, account: str) -> None:
        """Connect or reconnect an account."""
        reply = self._sandbox.issue(account)
        Credential.objects.import_tokens(
            account=account,
            access_token=reply["access_token"],
            refresh_token=reply["refresh_token"],
            expires_at=timezone.now() + timedelta(seconds=reply["expires_in"]),
        )
        self.imports += 1

    def reconnect_lost(self, *, immediately: bool = False) -> None:
        """Reconnect the accounts that have been lost for long enough."""
        delay_seconds = 0.0 if immediately else self._delay_seconds
        now = time.monotonic()
        lost_since = {}
        for credential in Credential.objects.needs_reauthorization():
            key = (credential.pk, credential.generation, credential.reason)
            lost_since[key] = self._lost_since.get(key, now)
            if now - lost_since[key] >= delay_seconds:
                del lost_since[key]
                self._reconnect(credential)
        self._lost_since = lost_since

    def find_lost(self) -> list[Grant]:
        """Return the grants that are lost now."""
        grants = (self._grant(credential) for credential in Credential.objects.all())
        return [grant for grant in grants if not grant.is_intact]

    def skip_delays(self) -> None:
        """End the delays that follow failures. Leases keep their time."""
        waiting = Credential.objects.connected().filter(lease_until__isnull=True)
        waiting.filter(failures__gt=0, refresh_at__gt=DatabaseNow()).update(
            refresh_at=DatabaseNow()
        )
        blocked = ApplicationState.objects.exclude(block_reason=BlockReason.NONE)
        blocked.filter(probe_at__gt=DatabaseNow() + timedelta(seconds=PROBE_SECONDS)).update(
            probe_at=DatabaseNow()
        )

    def _reconnect(self, credential: Credential) -> None:
        grant = self._grant(credential)
        if credential.reason == Reason.UNANSWERED:
            self.forced[grant.presented] += 1
            with suppress(InfusionsoftError):  # the row shows it the next time
                credential.refresh()
                self.forced_successes += 1
            return
        self.connect(grant.account)
        self.lost.append(grant)

    def _grant(self, credential: Credential) -> Grant:
        try:
            refresh_token = credential.refresh_token
        except DecryptionError:
            refresh_token = ""
        live = {grant.refresh_token for grant in self._sandbox.live_grants}
        return Grant(
            account=str(credential),
            generation=credential.generation,
            presented=fingerprint(refresh_token),
            status=credential.status,
            reason=credential.reason,
            is_live=refresh_token in live,
        )
