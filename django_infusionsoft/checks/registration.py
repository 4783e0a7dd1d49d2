"""Which checks exist, and when they run."""

from collections.abc import Callable
from typing import Final

from django.core.checks import CheckMessage, Tags, register

from django_infusionsoft.checks import (
    audits,
    databases,
    deployment,
    mails,
    schedule,
    values,
    views,
)

Check = Callable[..., list[CheckMessage]]

ALWAYS: Final[tuple[Check, ...]] = (
    values.check_encryption_keys,
    values.check_key_strength,
    values.check_settings,
    values.check_client,
    values.check_rate,
    values.check_spool,
    values.check_spooled,
    views.check_redirect_uri,
    views.check_urls,
    views.check_session_cookie,
    views.check_middleware,
    views.check_callback_path,
    views.check_callback_host,
    databases.check_time_zones,
    databases.check_database_time_zone,
    databases.check_database_of_users,
    databases.check_atomic_requests,
    audits.check_audit_apps,
    schedule.check_beat,
    mails.check_recipients,
    mails.check_mail_links,
    mails.check_mail_timeout,
)
WITH_DATABASE: Final[tuple[Check, ...]] = (
    databases.check_database_is_usable,
    databases.check_client_exists,
    databases.check_worker,
    databases.check_stored_values,
)
BEFORE_DEPLOYMENT: Final[tuple[Check, ...]] = (deployment.check_spool_outlives_service,)
FOR_SECURITY: Final[tuple[Check, ...]] = (
    deployment.check_redirect_uri_is_public,
    deployment.check_redirect_uri_is_secure,
    deployment.check_redirect_uri_is_fixed,
    deployment.check_endpoints_are_public,
)


def register_all() -> None:
    for check in ALWAYS:
        register(check)
    for check in WITH_DATABASE:
        register(check, Tags.database)
    for check in BEFORE_DEPLOYMENT:
        register(check, deploy=True)
    for check in FOR_SECURITY:
        register(check, Tags.security, deploy=True)
