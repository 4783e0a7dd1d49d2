"""A site's Celery, for the worker processes that tests start."""

from celery import Celery

from django_infusionsoft.schedule import beat_schedule

app = Celery("tests")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.beat_schedule = beat_schedule(seconds=1)
app.autodiscover_tasks()
