"""One schema for each customer."""

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Customer(TenantMixin):  # type: ignore[misc]
    name = models.CharField(max_length=100)


class Domain(DomainMixin):  # type: ignore[misc]
    pass
