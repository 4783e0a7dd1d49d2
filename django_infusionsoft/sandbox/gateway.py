"""The replies of Keap's gateway, which stands before the API (keap-facts sections 6 and 7)."""

from .messages import Reply, json_reply

GATEWAY_JSON = {"Content-Type": "application/json"}


def fault_reply(text: str, code: str, *, status: int = 401) -> Reply:
    """Return a gateway fault (keap-facts section 7)."""
    fault = {"faultstring": text, "detail": {"errorcode": code}}
    return json_reply({"fault": fault}, status=status, headers=GATEWAY_JSON)


def key_fault(text: str, code: str) -> Reply:
    """Return the 401 for an access token that is not valid."""
    return fault_reply(text, f"keymanagement.service.{code}")


def not_approved() -> Reply:
    """Return the 401 for a revoked access token."""
    return key_fault("Access Token not approved", "access_token_not_approved")


def quota_exceeded() -> Reply:
    """Return the 429 of a minute's or a day's limit; its code is a string."""
    content = {
        "code": "429",
        "message": "Quota Exceeded",
        "status": "Request Throttled",
        "details": None,
    }
    return json_reply(content, status=429, headers=GATEWAY_JSON)


def spike_arrest(allowed: int = 25) -> Reply:
    """Return the 429 of the limit of a second."""
    rate = (
        f"MessageRate{{messagesPerPeriod={allowed}, periodInMicroseconds=1000000, "
        "maxBurstMessageCount=2.0}"
    )
    text = f"Spike arrest violation. Allowed rate : {rate}"
    return fault_reply(text, "policies.ratelimit.SpikeArrestViolation", status=429)
