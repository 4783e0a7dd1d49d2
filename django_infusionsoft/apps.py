"""The app's entry in ``INSTALLED_APPS``."""

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _

from django_infusionsoft import checks


class DjangoInfusionsoftConfig(AppConfig):
    """Connects the site to Keap accounts."""

    name = "django_infusionsoft"
    verbose_name = _("Keap")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        register(checks.check_encryption_keys)
        register(checks.check_settings)
        register(checks.check_client)
        register(checks.check_redirect_uri)
        register(checks.check_lease)
        register(checks.check_time_zones)
        register(checks.check_urls)
        register(checks.check_session_cookie)
        register(checks.check_spool)
