"""The app's configuration for Django."""

import logging

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _

from django_infusionsoft.redaction import clear_logged


class DjangoInfusionsoftConfig(AppConfig):
    """Connects the site to Keap accounts."""

    name = "django_infusionsoft"
    verbose_name = _("Keap")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        logging.getLogger(self.name).addFilter(clear_logged)
        # They import models, which are not loaded before.
        from django_infusionsoft.checks.registration import register_all
        from django_infusionsoft.storage import query_caches

        register_all()
        query_caches.exclude(list(self.get_models()))
