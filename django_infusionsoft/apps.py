"""The app's configuration for Django."""

import logging

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.utils.translation import gettext_lazy as _

from django_infusionsoft.redaction import clear_logged


class DjangoInfusionsoftConfig(AppConfig):
    """Connects the site to Keap accounts."""

    name = "django_infusionsoft"
    verbose_name = _("Keap")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        logging.getLogger(self.name).addFilter(clear_logged)
        # The checks import models, which are not loaded before.
        from django_infusionsoft.checks import (
            audits,
            databases,
            deployment,
            mails,
            schedule,
            values,
            views,
        )
        from django_infusionsoft.storage import query_caches

        query_caches.exclude(list(self.get_models()))
        register(values.check_encryption_keys)
        register(values.check_key_strength)
        register(values.check_settings)
        register(values.check_client)
        register(values.check_rate)
        register(values.check_spool)
        register(values.check_spooled)
        register(views.check_redirect_uri)
        register(views.check_urls)
        register(views.check_session_cookie)
        register(views.check_middleware)
        register(views.check_callback_path)
        register(views.check_callback_host)
        register(databases.check_time_zones)
        register(databases.check_database_time_zone)
        register(databases.check_database_of_users)
        register(databases.check_atomic_requests)
        register(databases.check_database_is_usable, Tags.database)
        register(databases.check_client_exists, Tags.database)
        register(databases.check_worker, Tags.database)
        register(databases.check_stored_values, Tags.database)
        register(audits.check_audit_apps)
        register(schedule.check_beat)
        register(mails.check_recipients)
        register(mails.check_mail_links)
        register(mails.check_mail_timeout)
        register(deployment.check_spool_outlives_service, deploy=True)
        register(deployment.check_redirect_uri_is_public, Tags.security, deploy=True)
        register(deployment.check_redirect_uri_is_secure, Tags.security, deploy=True)
        register(deployment.check_redirect_uri_is_fixed, Tags.security, deploy=True)
        register(deployment.check_endpoints_are_public, Tags.security, deploy=True)
