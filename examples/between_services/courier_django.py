"""The courier: Django with `atomic`, as its tutorial writes it, here in one file.

gunicorn examples.between_services.courier_django:application
"""

from __future__ import annotations

import json
import os
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import models, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from txcoord_client.sync import Coordinator

url = urlsplit(os.environ["DATABASE_URL"])
settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="an example",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path.strip("/"),
            "USER": url.username,
            "HOST": url.hostname,
            "PORT": url.port,
        }
    },
)
django.setup()


class Account(models.Model):
    balance = models.BigIntegerField()

    class Meta:
        app_label = "courier"
        db_table = "account"


@csrf_exempt
@transaction.atomic
def credit(request: HttpRequest) -> HttpResponse:
    order = json.loads(request.body)
    account = get_object_or_404(Account.objects.select_for_update(), pk=order["account"])
    account.balance += order["cents"]
    account.save()
    return JsonResponse({"balance": account.balance})


def health(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


urlpatterns = [path("credit", credit), path("health", health)]

# ---- with these lines it takes part in its caller's transaction ----

coord = Coordinator(os.environ["TXCOORD_ADDRESS"])
coord.instrument("default", resource="courier")
application = coord.wsgi(get_wsgi_application())
