"""``path("infusionsoft/", include("django_infusionsoft.urls"))``"""

from django.urls import path

from django_infusionsoft import monitor, views

app_name = "django_infusionsoft"

urlpatterns = [
    path("authorize/", views.AuthorizeView.as_view(), name="authorize"),
    path("callback/", views.CallbackView.as_view(), name="callback"),
    path("health/", monitor.HealthView.as_view(), name="health"),
]
