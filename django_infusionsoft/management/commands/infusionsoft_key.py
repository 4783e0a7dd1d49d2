"""``manage.py infusionsoft_key``"""

from typing import Any

from cryptography.fernet import Fernet
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Prints a new key. Skips the system checks, which fail without a key."""

    help = "Prints a new Fernet key for INFUSIONSOFT_ENCRYPTION_KEYS."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(Fernet.generate_key().decode())
