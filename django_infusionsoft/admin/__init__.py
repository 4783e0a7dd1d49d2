"""The admin: view, connect, refresh and disconnect accounts. No secret is ever shown."""

from django_infusionsoft.admin.applications import ApplicationAdmin
from django_infusionsoft.admin.credentials import CredentialAdmin
from django_infusionsoft.admin.events import CredentialEventAdmin

__all__ = ["ApplicationAdmin", "CredentialAdmin", "CredentialEventAdmin"]
