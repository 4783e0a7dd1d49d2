from django.apps import apps
from django.urls import include, path

from tests.urls import urlpatterns as urls_of_site

themes = [path("grappelli/", include("grappelli.urls"))] if apps.is_installed("grappelli") else []
urlpatterns = [*themes, *urls_of_site]
