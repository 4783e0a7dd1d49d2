"""People who log in by their mail address."""

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models


class PersonManager(BaseUserManager["Person"]):
    """``Person.objects``."""

    def create_superuser(self, email: str) -> "Person":
        return self.create(email=email, is_staff=True, is_superuser=True)


class Person(AbstractBaseUser, PermissionsMixin):
    """A user model without ``username`` and whose primary key is not a number."""

    code = models.CharField(max_length=20, primary_key=True, default="p-1")
    email = models.EmailField(unique=True)
    is_staff = models.BooleanField(default=False)

    objects: ClassVar[PersonManager] = PersonManager()

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    class Meta:
        app_label = "people"

    def __str__(self) -> str:
        return self.email

    def get_full_name(self) -> Any:
        return self.email

    def get_short_name(self) -> Any:
        return self.email
