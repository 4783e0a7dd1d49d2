"""The user and the account in both versions of the API (keap-facts section 3)."""

from typing import Any

from .calls import Call, Operation, user_number
from .messages import Reply, json_reply
from .people import KeapUser


def _userinfo_v1(call: Call) -> Reply:
    return json_reply(
        {
            **_person(call.user),
            "global_user_id": user_number(call.user),
            "infusionsoft_id": call.user.email,
        }
    )


def _userinfo_v2(call: Call) -> Reply:
    tenants = {"bare": call.account.app_id, "host": call.account.host}
    tenant_id = tenants.get(call.switches.tenant_id)
    return json_reply(
        {
            **_person(call.user),
            "id": str(user_number(call.user)),
            "keap_id": call.user.email,
            **({"tenant_id": tenant_id} if tenant_id else {}),
        }
    )


def _profile_v1(call: Call) -> Reply:
    address = {"field": "BILLING", **_address(call), "zip_code": "85224", "zip_four": ""}
    return json_reply(
        {
            **_profile(call),
            "phone_ext": "",
            "business_goals": [],
            "business_primary_color": "",
            "business_secondary_color": "",
            "address": address,
        }
    )


def _profile_v2(call: Call) -> Reply:
    return json_reply({**_profile(call), "address": _address(call)})


def _profile(call: Call) -> dict[str, Any]:
    return {
        "name": call.account.title,
        "email": call.user.email,
        "phone": "(480) 555-0100",
        "website": f"https://{call.account.app_id}.example",
        "logo_url": "",
        "time_zone": "America/Phoenix",
        "language_tag": "en-US",
        "currency_code": "USD",
        "business_type": "",
    }


def _address(call: Call) -> dict[str, str]:
    return {
        "line1": "1 Sandbox Street",
        "line2": "",
        "locality": "Chandler",
        "region": "AZ",
        "postal_code": "85224",
        "country_code": "USA",
    }


def _person(user: KeapUser) -> dict[str, Any]:
    return {
        "sub": str(70_000 + user_number(user)),
        "email": user.email,
        "given_name": user.given_name,
        "family_name": user.family_name,
        "middle_name": "",
        "preferred_name": user.given_name,
        "is_admin": user.is_admin,
    }


OPERATIONS = (
    Operation("GET", "v1/oauth/connect/userinfo", _userinfo_v1),
    Operation("GET", "v2/oauth/connect/userinfo", _userinfo_v2),
    Operation("GET", "v1/account/profile", _profile_v1),
    Operation("GET", "v2/businessProfile", _profile_v2),
)
