"""The Celery task; the only module that imports Celery."""

from celery import shared_task

from django_infusionsoft.models import Credential


@shared_task(name="django_infusionsoft.tasks.refresh_due_credentials")
def refresh_due_credentials() -> dict[str, int]:
    """Refresh what is due and return the counts by outcome.

    Safe when run twice, late or never: every credential is claimed in its row.
    """
    return Credential.objects.refresh_due().as_dict()
