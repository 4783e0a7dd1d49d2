from django.contrib import admin
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from oauth2_provider.decorators import protected_resource


@protected_resource(scopes=["full"])  # type: ignore[untyped-decorator]
def me(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"name": "Ana"})


urlpatterns = [
    path("admin/", admin.site.urls),
    path("o/", include("oauth2_provider.urls")),
    path("api/me", me),
]
