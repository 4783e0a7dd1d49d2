"""Settings of a site with django-tenants. The app's tables are in each schema."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS

DATABASES["default"]["ENGINE"] = "django_tenants.postgresql_backend"
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
SHARED_APPS = ["django_tenants", "tests.system.customers", *INSTALLED_APPS]
TENANT_APPS = INSTALLED_APPS
INSTALLED_APPS = SHARED_APPS
TENANT_MODEL = "customers.Customer"
TENANT_DOMAIN_MODEL = "customers.Domain"
ROOT_URLCONF = "tests.urls"
MIGRATION_MODULES = {"customers": None}
