"""What a made-up shop answers to a ticket of each intent of ``phrases.py``, and what it calls one."""

REPLIES: dict[str, str] = {
    "track_delivery": "You can follow your parcel on the tracking page. It arrives within [days].",
    "return_item": "You may send it back within 30 days. The label is in your account. The courier comes in [days].",
    "refund_status": "The refund is on its way to your card. It takes [days].",
    "cancel_order": "We have stopped the order. Nothing is charged, and you can order again at any time.",
    "change_address": "Please open Addresses in your account and save the new one. We use it from the next parcel on.",
    "payment_failed": "Please check the card and try once more. If it fails again, another card or a transfer works.",
    "invoice_copy": "All invoices are in your account under Documents. A copy comes by mail within [days].",
    "login_problem": "Please choose Forgot password on the login page. The mail with the link arrives within a minute.",
    "damaged_item": "We are sorry. Please send us a photo, and a new one leaves our house within [days].",
    "membership_change": "You have the [plan] plan. You can change it in your account under Membership.",
}
"""What is answered, whatever words a customer finds; ``[plan]`` is theirs, and ``[days]`` what the plan promises."""

DAYS = {"free": "five days", "plus": "two days", "business": "one day"}

SUBJECTS: dict[str, str] = {
    "track_delivery": "Where is the parcel?",
    "return_item": "Wants to return an item",
    "refund_status": "Waits for a refund",
    "cancel_order": "Cancel the order",
    "change_address": "New address",
    "payment_failed": "Payment does not work",
    "invoice_copy": "Needs an invoice",
    "login_problem": "Cannot log in",
    "damaged_item": "Item arrived damaged",
    "membership_change": "Change of membership",
}
"""What a ticket is about, in a few words."""


def reply(intent: str, plan: str) -> str:
    """What the shop answers."""
    return REPLIES[intent].replace("[days]", DAYS[plan]).replace("[plan]", plan)
