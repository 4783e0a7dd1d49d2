"""Every reply of the token endpoint, end to end, and the credential afterwards."""

import base64
import datetime as dt
import ipaddress
import json
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.models import ApplicationState, Credential
from django_infusionsoft.sandbox import Fault, Sandbox, faults

pytestmark = pytest.mark.django_db

# One `credential.refresh()` of a credential whose access token has expired:
#
# outcome   in the history, which has no event if nothing was tried
# raises    the exception that refresh() raises
# row       the status afterwards, or the reason if the account must be reconnected
# pair      that of the row: `new access` is a new access token with the old refresh token
# failing   whether it counts as a consecutive failure
# later     the outcome of the next run once Keap works again and all delays are over; `lost`: Keap
#           had rotated, so the new token pair cannot be recovered, and the reason says so
TABLE = """
what Keap does                    outcome        raises                   row        pair        failing  later
--------------------------------  -------------  -----------------------  ---------  ----------  -------  ---------
200 and a pair                    ok             -                        connected  new         no       -
200, expires_in as a string       ok             -                        connected  new         no       -
200, expires_in a float           ok             -                        connected  new         no       -
200, expires_in zero              ok             -                        connected  new         no       -
200, expires_in negative          ok             -                        connected  new         no       -
200, expires_in huge              ok             -                        connected  new         no       -
200, expires_in missing           ok             -                        connected  new         no       -
200, expires_in nonsense          ok             -                        connected  new         no       -
200, text/html around the pair    ok             -                        connected  new         no       -
200, byte order mark              ok             -                        connected  new         no       -
200, dripping, but in time        ok             -                        connected  new         no       -
200, no refresh token             ok             -                        connected  new access  no       -
200, refresh token null           ok             -                        connected  new access  no       -
200, refresh token empty          unknown        OutcomeUnknown           connected  old         yes      lost
200, refresh token a number       unknown        OutcomeUnknown           connected  old         yes      lost
200, access token missing         unknown        OutcomeUnknown           connected  old         yes      lost
200, access token empty           unknown        OutcomeUnknown           connected  old         yes      lost
200, access token a number        unknown        OutcomeUnknown           connected  old         yes      lost
200, access token null            unknown        OutcomeUnknown           connected  old         yes      lost
200, access token a surrogate     unknown        OutcomeUnknown           connected  old         yes      lost
200, access token of two lines    unknown        OutcomeUnknown           connected  old         yes      lost
200, refresh token a surrogate    unknown        OutcomeUnknown           connected  old         yes      lost
200, refresh token with NUL       unknown        OutcomeUnknown           connected  old         yes      lost
200, JSON cut off                 unknown        OutcomeUnknown           connected  old         yes      lost
200, body cut off by the network  unknown        OutcomeUnknown           connected  old         yes      lost
200, dripping for too long        unknown        OutcomeUnknown           connected  old         yes      lost
200, error in JSON                unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
200 invalid_grant                 rejected       ReauthorizationRequired  revoked    old         no       -
200 bad_refresh_token             rejected       ReauthorizationRequired  revoked    old         no       -
200 invalid_client                misconfigured  ClientRejected           connected  old         no       refreshed
200, HTML                         unavailable    GatewayFailed            connected  old         yes      refreshed
200, empty                        unavailable    GatewayFailed            connected  old         yes      refreshed
200, a JSON list                  unavailable    GatewayFailed            connected  old         yes      refreshed
200, 10 MB                        unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
200, empty, rotated               unavailable    GatewayFailed            connected  old         yes      lost
302                               unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
307                               unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
400 Invalid Refresh Token         rejected       ReauthorizationRequired  revoked    old         no       -
400 invalid_grant (Mashery)       rejected       ReauthorizationRequired  revoked    old         no       -
400 Refresh Token expired         rejected       ReauthorizationRequired  expired    old         no       -
400, gateway fault                unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
400, HTML                         unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
400, empty                        unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
400 grant_type is required        unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
400 invalid_client                misconfigured  ClientRejected           connected  old         no       refreshed
401 invalid_client                misconfigured  ClientRejected           connected  old         no       refreshed
401 invalid_grant, of the grant   rejected       ReauthorizationRequired  revoked    old         no       -
401 invalid_grant, of the client  misconfigured  ClientRejected           connected  old         no       refreshed
401, empty                        misconfigured  ClientRejected           connected  old         no       refreshed
403                               unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
403 client_id_not_approved        misconfigured  ClientRejected           connected  old         no       refreshed
404                               unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
429 quota                         unavailable    RefreshesLimited         connected  old         yes      refreshed
429 quota, Retry-After 600        unavailable    RefreshesLimited         connected  old         yes      refreshed
429 quota, Retry-After a date     unavailable    RefreshesLimited         connected  old         yes      refreshed
429 spike                         unavailable    RefreshesLimited         connected  old         yes      refreshed
429 spike, Retry-After 600        unavailable    RefreshesLimited         connected  old         yes      refreshed
429 spike, Retry-After a date     unavailable    RefreshesLimited         connected  old         yes      refreshed
500                               unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
500, HTML                         unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
500, empty                        unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
502                               unavailable    GatewayFailed            connected  old         yes      refreshed
502, rotated                      unavailable    GatewayFailed            connected  old         yes      lost
503, Retry-After 600              unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
503, Retry-After a date           unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
504                               unavailable    GatewayFailed            connected  old         yes      refreshed
504, rotated                      unavailable    GatewayFailed            connected  old         yes      lost
596                               unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
connection refused                unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
name unknown                      unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
certificate self-signed           unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
no TLS behind https               unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
dropped in the TLS handshake      unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
no answer in the TLS handshake    unavailable    TemporarilyUnavailable   connected  old         yes      refreshed
dropped before rotating           unknown        OutcomeUnknown           connected  old         yes      refreshed
reset before rotating             unknown        OutcomeUnknown           connected  old         yes      refreshed
dropped after rotating            unknown        OutcomeUnknown           connected  old         yes      lost
reset after rotating              unknown        OutcomeUnknown           connected  old         yes      lost
reset midway                      unknown        OutcomeUnknown           connected  old         yes      lost
no answer in time, not rotated    unknown        OutcomeUnknown           connected  old         yes      refreshed
no answer in time, rotated        unknown        OutcomeUnknown           connected  old         yes      lost
client secret wrong               misconfigured  ClientRejected           connected  old         no       refreshed
client id missing                 -              ConfigurationError       connected  old         no       refreshed
token URL without TLS             -              ConfigurationError       connected  old         no       refreshed
"""  # noqa: E501


@dataclass(frozen=True)
class Row:
    """A row of the table; the fields are its columns."""

    what: str
    outcome: str
    raises: str
    row: str
    pair: str
    failing: str
    later: str


ROWS = [Row(*re.split(r" {2,}", line)) for line in TABLE.strip().splitlines()[2:]]
Condition = Callable[[Sandbox], AbstractContextManager[object]]


def with_fault(fault: Fault, **settings: Any) -> Condition:
    """Inject a fault into the credential's next refresh, but into no probe."""

    @contextmanager
    def condition(sandbox: Sandbox) -> Iterator[None]:
        sandbox.plan(fault, account="ab123")
        with override_settings(**settings):
            yield

    return condition


def with_settings(**settings: Any) -> Condition:
    return lambda sandbox: override_settings(**settings)


def changed(**changes: Any) -> Condition:
    """Change the reply after Keap has rotated. ``...`` removes a field."""

    def edit(reply: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**reply, **changes}.items() if value is not ...}

    return with_fault(faults.edited(edit))


PAIR = json.dumps({"access_token": "a" * 28, "refresh_token": "r" * 32, "expires_in": 86_400})


def access_token_only(**more: Any) -> Condition:
    """Reply as a server that does not rotate refresh tokens."""
    return with_fault(faults.answer(200, {"access_token": "a" * 28, "expires_in": 60, **more}))


def error(status: int, code: str, description: str = "") -> Condition:
    return with_fault(faults.answer(status, {"error": code, "error_description": description}))


def gateway_fault(status: int, code: str, text: str) -> Condition:
    content = {"fault": {"faultstring": text, "detail": {"errorcode": code}}}
    return with_fault(faults.answer(status, content))


@contextmanager
def revoked(sandbox: Sandbox) -> Iterator[None]:
    sandbox.revoke("ab123")
    yield


@contextmanager
def revoked_by_mashery(sandbox: Sandbox) -> Iterator[None]:
    sandbox.switches.refresh_error = "mashery"
    sandbox.revoke("ab123")
    yield


@contextmanager
def too_old(sandbox: Sandbox) -> Iterator[None]:
    sandbox.clock.advance(46 * 86_400)
    yield


def redirect(status: int) -> Condition:
    """Redirect to an endpoint that would use up the refresh token."""

    @contextmanager
    def condition(sandbox: Sandbox) -> Iterator[None]:
        headers = {"Location": sandbox.token_url}
        sandbox.plan(faults.answer(status, "", headers=headers), account="ab123")
        yield

    return condition


@contextmanager
def refused(sandbox: Sandbox) -> Iterator[None]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/token"
        with override_settings(INFUSIONSOFT_TOKEN_URL=url):
            yield


@contextmanager
def serving(serve: Callable[[socket.socket], None], **settings: Any) -> Iterator[None]:
    """Point an https URL at a server that passes its one connection to ``serve``."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def run() -> None:
            with server.accept()[0] as connection:
                connection.settimeout(10)
                with suppress(OSError):  # the client has disconnected
                    serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}/token"
        with override_settings(INFUSIONSOFT_TOKEN_URL=url, **settings):
            yield
        thread.join()


def self_signed(sandbox: Sandbox) -> AbstractContextManager[None]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context.load_cert_chain(file)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            encrypted.recv(1)

    return serving(serve)


def without_tls(sandbox: Sandbox) -> AbstractContextManager[None]:
    return serving(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))


def dropped_in_the_handshake(sandbox: Sandbox) -> AbstractContextManager[None]:
    def serve(connection: socket.socket) -> None:
        connection.recv(1)  # the rest stays unread, so the connection is reset

    return serving(serve)


def silent_in_the_handshake(sandbox: Sandbox) -> AbstractContextManager[None]:
    def serve(connection: socket.socket) -> None:
        while connection.recv(4096):  # until the client gives up
            pass

    return serving(serve, INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS=0.1)


def retry_after_date(fault: Fault) -> Condition:
    """Add a date in ten minutes as ``Retry-After``."""

    @contextmanager
    def condition(sandbox: Sandbox) -> Iterator[None]:
        assert fault.reply
        at = dt.datetime.now(dt.UTC) + timedelta(minutes=10)
        headers = {**fault.reply.headers, "Retry-After": format_datetime(at, usegmt=True)}
        sandbox.plan(replace(fault, reply=replace(fault.reply, headers=headers)), account="ab123")
        yield

    return condition


SHORT_TIMEOUT = {"INFUSIONSOFT_READ_TIMEOUT_SECONDS": 0.1}
HTML = "<html><body><h1>Something is wrong</h1></body></html>"

CONDITIONS: dict[str, Condition] = {
    "200 and a pair": changed(),
    "200, expires_in as a string": changed(expires_in="86400"),
    "200, expires_in a float": changed(expires_in=86399.5),
    "200, expires_in zero": changed(expires_in=0),
    "200, expires_in negative": changed(expires_in=-5),
    "200, expires_in huge": changed(expires_in=10**30),
    "200, expires_in missing": changed(expires_in=...),
    "200, expires_in nonsense": changed(expires_in="soon"),
    "200, text/html around the pair": with_fault(
        faults.answer(200, PAIR, headers={"Content-Type": "text/html"})
    ),
    "200, byte order mark": with_fault(faults.answer(200, b"\xef\xbb\xbf" + PAIR.encode())),
    "200, dripping, but in time": with_fault(faults.drip(0.001, size=20)),
    "200, no refresh token": access_token_only(),
    "200, refresh token null": access_token_only(refresh_token=None),
    "200, refresh token empty": changed(refresh_token=""),
    "200, refresh token a number": changed(refresh_token=5),
    "200, access token missing": changed(access_token=...),
    "200, access token empty": changed(access_token=""),
    "200, access token a number": changed(access_token=5),
    "200, access token null": changed(access_token=None),
    "200, access token a surrogate": changed(access_token="\ud800" * 28),
    "200, access token of two lines": changed(access_token="two\r\nlines"),
    "200, refresh token a surrogate": changed(refresh_token="refresh\udfff"),
    "200, refresh token with NUL": changed(refresh_token="refresh\0"),
    "200, JSON cut off": with_fault(faults.answer(200, PAIR[:60], is_processed=True)),
    "200, body cut off by the network": with_fault(faults.drop_midway()),
    "200, dripping for too long": with_fault(faults.drip(0.02), **SHORT_TIMEOUT),
    "200, error in JSON": with_fault(faults.error_200()),
    "200 invalid_grant": error(200, "invalid_grant"),
    "200 bad_refresh_token": error(200, "bad_refresh_token"),
    "200 invalid_client": error(200, "invalid_client"),
    "200, HTML": with_fault(faults.html()),
    "200, empty": with_fault(faults.empty()),
    "200, a JSON list": with_fault(faults.answer(200, f"[{PAIR}]")),
    "200, 10 MB": with_fault(faults.answer(200, b"x" * 10_000_000)),
    "200, empty, rotated": with_fault(faults.answer(200, "", is_processed=True)),
    "302": redirect(302),
    "307": redirect(307),
    "400 Invalid Refresh Token": revoked,
    "400 invalid_grant (Mashery)": revoked_by_mashery,
    "400 Refresh Token expired": too_old,
    "400, gateway fault": gateway_fault(
        400, "keymanagement.service.invalid_refresh_token", "Invalid Refresh Token"
    ),
    "400, HTML": with_fault(faults.answer(400, HTML)),
    "400, empty": with_fault(faults.empty(400)),
    "400 grant_type is required": error(400, "invalid_request", "grant_type is required"),
    "400 invalid_client": error(400, "invalid_client"),
    "401 invalid_client": error(401, "invalid_client", "ClientId is Invalid"),
    "401 invalid_grant, of the grant": error(401, "invalid_grant", "The grant is not valid."),
    "401 invalid_grant, of the client": error(
        401, "invalid_grant", "Unable to authenticate username and password"
    ),
    "401, empty": with_fault(faults.empty(401)),
    "403": with_fault(faults.answer(403, HTML)),
    "403 client_id_not_approved": gateway_fault(
        403, "keymanagement.service.invalid_client-client_id_not_approved", "Not approved"
    ),
    "404": with_fault(faults.answer(404, HTML)),
    "429 quota": with_fault(faults.throttled()),
    "429 quota, Retry-After 600": with_fault(faults.throttled(600)),
    "429 quota, Retry-After a date": retry_after_date(faults.throttled()),
    "429 spike": with_fault(faults.spike()),
    "429 spike, Retry-After 600": with_fault(faults.spike(600)),
    "429 spike, Retry-After a date": retry_after_date(faults.spike()),
    "500": with_fault(faults.error_500()),
    "500, HTML": with_fault(faults.answer(500, HTML)),
    "500, empty": with_fault(faults.empty(500)),
    "502": with_fault(faults.error_502()),
    "502, rotated": with_fault(faults.answer(502, HTML, is_processed=True)),
    "503, Retry-After 600": with_fault(faults.error_503(600)),
    "503, Retry-After a date": retry_after_date(faults.error_503()),
    "504": with_fault(faults.answer(504, HTML)),
    "504, rotated": with_fault(faults.answer(504, HTML, is_processed=True)),
    "596": with_fault(faults.error_596()),
    "connection refused": refused,
    "name unknown": with_settings(INFUSIONSOFT_TOKEN_URL="https://keap.invalid/token"),
    "certificate self-signed": self_signed,
    "no TLS behind https": without_tls,
    "dropped in the TLS handshake": dropped_in_the_handshake,
    "no answer in the TLS handshake": silent_in_the_handshake,
    "dropped before rotating": with_fault(faults.drop_before()),
    "reset before rotating": with_fault(faults.drop_before(is_reset=True)),
    "dropped after rotating": with_fault(faults.drop_after()),
    "reset after rotating": with_fault(faults.drop_after(is_reset=True)),
    "reset midway": with_fault(faults.drop_midway(is_reset=True)),
    "no answer in time, not rotated": with_fault(faults.latency(30), **SHORT_TIMEOUT),
    "no answer in time, rotated": with_fault(faults.latency_after(30), **SHORT_TIMEOUT),
    "client secret wrong": with_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"),
    "client id missing": with_settings(INFUSIONSOFT_CLIENT_ID=""),
    "token URL without TLS": with_settings(INFUSIONSOFT_TOKEN_URL="http://192.0.2.1/token"),
}


def each(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.what)


def refresh_under(sandbox: Sandbox, credential: Credential, row: Row) -> InfusionsoftError | None:
    """Refresh under the condition of a row; return the exception, if any."""
    with CONDITIONS[row.what](sandbox):
        try:
            credential.refresh()
        except InfusionsoftError as raised:
            return raised
        finally:
            sandbox.clear_plan()
    return None


def stored(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def pair(credential: Credential) -> tuple[str, str]:
    return credential.access_token, credential.refresh_token


def end_delays() -> None:
    """End every delay."""
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.filter(refresh_at__isnull=False).update(refresh_at=past)
    ApplicationState.objects.update(probe_at=past)


def test_table_has_a_row_for_every_condition() -> None:
    assert [row.what for row in ROWS] == list(CONDITIONS)


@each(ROWS)
def test_result_is_that_of_the_table(sandbox: Sandbox, expired: Credential, row: Row) -> None:
    old = pair(expired)
    raised = refresh_under(sandbox, expired, row)
    after = stored(expired)
    requires_reauthorization = after.status == "reauthorization_required"
    has_changed = (after.access_token != old[0], after.refresh_token != old[1])
    assert row == Row(
        what=row.what,
        outcome=expired.events.order_by("-pk")[0].outcome or "-",
        raises=type(raised).__name__ if raised else "-",
        row=after.reason if requires_reauthorization else after.status,
        pair={(False, False): "old", (True, False): "new access", (True, True): "new"}[
            has_changed
        ],
        failing="yes" if after.failures else "no",
        later=row.later,
    )
    assert after.lease_until is None
    assert sandbox.presentations(old[1]) <= 1


@each([row for row in ROWS if row.outcome == "ok"])
def test_new_access_token_is_returned_after_an_unusual_reply(
    sandbox: Sandbox, expired: Credential, row: Row
) -> None:
    refresh_under(sandbox, expired, row)
    assert stored(expired).get_access_token() == expired.access_token
    assert len(sandbox.token_requests) == 1


@each(ROWS)
def test_log_shows_no_secret(
    sandbox: Sandbox, expired: Credential, row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("", "requests_oauthlib", "oauthlib", "urllib3", "django_infusionsoft"):
        caplog.set_level(logging.DEBUG, logger=name)
    client = "{INFUSIONSOFT_CLIENT_ID}:{INFUSIONSOFT_CLIENT_SECRET}".format_map(sandbox.settings)
    basic = base64.b64encode(client.encode()).decode()
    secrets = {*pair(expired), sandbox.settings["INFUSIONSOFT_CLIENT_SECRET"], basic}
    raised = refresh_under(sandbox, expired, row)
    secrets |= {*pair(stored(expired)), *(grant.refresh_token for grant in sandbox.live_grants)}
    shown = (
        f"{caplog.text} {raised!r} {vars(raised) if raised else ''} {stored(expired).last_error}"
    )
    assert not [secret for secret in secrets if secret in shown]
    assert "django_infusionsoft" in {record.name for record in caplog.records}


@each([row for row in ROWS if row.later == "refreshed"])
def test_credential_is_refreshed_automatically_when_keap_works_again(
    sandbox: Sandbox, expired: Credential, row: Row
) -> None:
    presented = expired.refresh_token
    refresh_under(sandbox, expired, row)
    end_delays()
    assert Credential.objects.refresh_due().as_dict()["refreshed"] == 1
    after = stored(expired)
    assert (after.status, after.generation, after.failures) == ("connected", 2, 0)
    assert (after.unanswered_attempts, after.last_error) == (0, "")
    (grant,) = sandbox.live_grants
    assert after.refresh_token == grant.refresh_token != presented
    assert sandbox.replays == 0


@each([row for row in ROWS if row.later == "lost"])
def test_reason_is_rotation_lost_when_the_lost_answer_had_a_pair(
    sandbox: Sandbox, expired: Credential, row: Row
) -> None:
    refresh_under(sandbox, expired, row)
    end_delays()
    assert Credential.objects.refresh_due().as_dict()["rejected"] == 1
    assert stored(expired).reason == "rotation_lost"


@each([row for row in ROWS if "Retry-After" in row.what])
def test_retry_is_delayed_for_as_long_as_keap_asks(
    sandbox: Sandbox, expired: Credential, row: Row
) -> None:
    refresh_under(sandbox, expired, row)
    refresh_at = stored(expired).refresh_at
    assert refresh_at
    assert 590 < (refresh_at - timezone.now()).total_seconds() <= 601
