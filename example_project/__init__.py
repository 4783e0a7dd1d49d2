"""A small real site around django_infusionsoft: admin, Celery, settings from the environment."""

from importlib.util import find_spec

if find_spec("celery"):  # the site works without it; only the worker does not
    from .celery import app as celery_app

    __all__ = ["celery_app"]
