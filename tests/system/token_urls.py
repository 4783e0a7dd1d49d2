"""The URLs of a site whose only page needs an access token."""

from django.http import HttpRequest, HttpResponse
from django.urls import path

from django_infusionsoft.exceptions import TemporarilyUnavailable
from django_infusionsoft.models import Credential


def show(request: HttpRequest) -> HttpResponse:
    """Return what a page would send to Keap's API."""
    try:
        return HttpResponse(Credential.objects.get().get_access_token())
    except TemporarilyUnavailable as error:
        return HttpResponse(str(error), status=503)


urlpatterns = [path("", show)]
