"""Keap users, their accounts, and the OAuth client of the sandbox. All are invented."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Account:
    """One Keap tenant. `contacts`: the initial ones, as (given name, family name, email)."""

    app_id: str
    name: str = ""
    contacts: tuple[tuple[str, str, str], ...] = ()

    @property
    def host(self) -> str:
        """`ab123.infusionsoft.com`, as in `scope` (keap-facts 2.2) and x-keap-tenant-id."""
        return f"{self.app_id}.infusionsoft.com"

    @property
    def title(self) -> str:
        return self.name or self.app_id


@dataclass(frozen=True)
class KeapUser:
    """A user who can log in to the sandbox and connect any of `accounts`."""

    email: str
    accounts: tuple[Account, ...]
    password: str = field(default="sandbox", repr=False)
    given_name: str = "Ana"
    family_name: str = "Ruiz"
    is_admin: bool = True

    @property
    def full_name(self) -> str:
        return f"{self.given_name} {self.family_name}"


@dataclass(frozen=True)
class Client:
    """An OAuth client, registered at the developer portal."""

    client_id: str = "sandbox-client"
    client_secret: str = field(default="sandbox-secret", repr=False)


ACME_BAKERY = Account(
    "ab123",
    "Acme Bakery",
    (("Bea", "Crumb", "bea@acme.example"), ("Otto", "Rye", "otto@acme.example")),
)
BLUE_CYCLES = Account("cd456", "Blue Cycles", (("Cleo", "Spoke", "cleo@blue.example"),))
DUNE_STUDIO = Account("ef789", "Dune Studio", (("Dev", "Sand", "dev@dune.example"),))

DEFAULT_USERS = (
    KeapUser("ana@example.test", (ACME_BAKERY, BLUE_CYCLES)),
    KeapUser(
        "ben@example.test",
        (DUNE_STUDIO,),
        given_name="Ben",
        family_name="Okoro",
        is_admin=False,
    ),
)


def one_user(accounts: Iterable[Account | str]) -> tuple[KeapUser]:
    """Return a single user with all of `accounts` (app ids or Account values)."""
    owned = tuple(Account(each) if isinstance(each, str) else each for each in accounts)
    return (KeapUser("ana@example.test", owned),)
