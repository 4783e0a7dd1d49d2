"""``path("infusionsoft/", include("django_infusionsoft.urls"))``"""

from django.urls import path

from django_infusionsoft import views
from django_infusionsoft.views import health

app_name = "django_infusionsoft"

urlpatterns = [
    path("authorize/", views.AuthorizeView.as_view(), name="authorize"),
    path("callback/", views.CallbackView.as_view(), name="callback"),
    path("health/", health.HealthView.as_view(), name="health"),
]
