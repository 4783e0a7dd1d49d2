"""The views: the authorization at Keap, and the health check for monitors."""

from django_infusionsoft.views.authorize import AuthorizeView
from django_infusionsoft.views.base import KeapView
from django_infusionsoft.views.callback import CallbackView
from django_infusionsoft.views.health import HealthView

__all__ = ["AuthorizeView", "CallbackView", "HealthView", "KeapView"]
