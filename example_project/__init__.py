"""An example site that uses django_infusionsoft: admin, Celery, settings from the environment."""

from importlib.util import find_spec

if find_spec("celery"):  # only the worker needs it
    from .celery import app as celery_app

    __all__ = ["celery_app"]
