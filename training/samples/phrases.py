"""How customers of a made-up shop write: a grammar for each intent.

``{a|b}`` stands for one of its parts. ``ASKS`` is what the customer wants, and decides the intent. ``SETTLED`` is what a
customer says of an intent that is *not* what they want, and ``AFTER_OTHER`` are the ways in which they mention a whole
other request. Both put one team's words into another team's tickets, so that counting words does not do, and a model
has to read.
"""

ASKS: dict[str, list[str]] = {
    "track_delivery": [
        "{where is|where's|any idea where} {my|the} {parcel|package|order|shipment|delivery}{?| at the moment?| right now?}",
        "{my|the} {order|parcel|package} {still has not|has not|hasn't|never} {arrived|shown up|turned up|come}",
        "the {tracking|tracking page|courier's site} {has not moved|says the same thing|has shown nothing new} {for days|since Monday|for a week}",
        "when {will|is} {my|the} {order|stuff|parcel|item} {get here|going to get here|arrive|be delivered}?",
        "{it was supposed to|it should|you said it would} {be here|come|arrive} {yesterday|last Friday|two days ago} {and I am still waiting|but nothing came|and the doorbell never rang}",
        "how {long|much longer} {until|before} {the courier|your driver|the van} {brings it|comes by|gets to me}?",
    ],
    "return_item": [
        "{how do I|how can I|I want to|I'd like to} {send|ship|give} {this|it|the jacket|the lamp} back{?|}",
        "it {does not|doesn't} {fit|suit me|go with my room} {and I want to return it|, what are the steps to hand it back?|, can I bring it back?}",
        "{can|could} you {send|email} me a {return label|label so I can post it back|prepaid sticker}?",
        "I {changed my mind|ordered the wrong size|bought two by mistake} {and want to give one back|and the box is still sealed, how does it come back to you?|, which address do returns go to?}",
        "what is your {policy|deadline|time limit} for {sending things back|unwanted items|returns}?",
        "I {no longer want|don't need} the {shoes|kettle|headphones} {I got from you|that came last week}{, please collect them|, how do I get them back to you?}",
    ],
    "refund_status": [
        "{where is|I am still waiting for|what happened to} my {money|refund}{?|}",
        "{you|your team} {got|received} {the item|my return} {two weeks ago|on the 3rd|ages ago} {and my account is still empty|but nothing has been paid back|and I have not seen a cent}",
        "when {do I get|will I see|can I expect} {my money back|the refund|the amount on my card}?",
        "{it says|the app says|your mail says} {refunded|reimbursed} {but my bank shows nothing|but nothing reached my card|, the bank says no}",
        "{only part|just half} of {the amount|what I paid} {came back|was returned}{, where is the rest?| and I want to know why}",
        "how {many days|long} {does it take|until} {the bank gets it|for the credit to show up|you pay me back}?",
    ],
    "cancel_order": [
        "{please |}{cancel|stop|call off} {my|the} {order|purchase}{ before it ships| right away| please|}",
        "{I|we} {ordered|bought} {this|it} {by accident|an hour ago|twice} {and do not want it to be sent|, please do not ship it|, can you stop it?}",
        "is it {too late|still possible} to {cancel|take back the order|withdraw}?",
        "{don't|do not|please don't} {send|ship|pack} {it|the second one|order number nine}{, I no longer need it|, I found it cheaper|}",
        "I {pressed|hit|tapped} {buy|the button|order} {too early|by mistake} {and want to undo that|, please drop it}",
        "{scrap|forget|kill} {the order|what I bought this morning}{, plans changed|, my wife got the same|}",
    ],
    "change_address": [
        "I {moved|have moved|am moving} {last week|next month|to another town} {and you still have the old street|, where do I put the new address?|, please update where you send things}",
        "{can|could} you {send|deliver|redirect} it to {my office|my neighbour|a different street} instead?",
        "{the|my} {postcode|house number|street} {in my profile|on the order|I typed} is {wrong|missing a digit|the old one}",
        "{please |}{change|update|correct} {the|my} {delivery address|place of delivery|shipping details}",
        "I {made a typo in|gave you the wrong} {the street name|flat number|city}{, can it still be fixed?|}",
        "{we are|I'll be} {away|at my parents' place} {this week|in May} {, can it go there?|and want it to go to a pick-up point}",
    ],
    "payment_failed": [
        "{my|the} {card|payment|credit card} {was declined|is refused|does not go through|keeps failing}",
        "{I|we} {cannot|can't} {pay|check out|finish paying}{, it just spins|, the page throws an error|}",
        "{the checkout|your site} {rejects|does not take|won't accept} {my bank card|any of my cards|the code my bank sent}",
        "{tried|I tried} {three times|two cards|everything} {and every time it says no|, the bank says all is fine on their side|and it says transaction not approved}",
        "I was {charged twice|billed two times|debited for something I never bought}",
        "{money left my account|my bank took the sum} {but there is no order|and you say it was not paid}",
    ],
    "invoice_copy": [
        "{please |can you |}{send|email|give} me {the|a copy of the|last month's} {invoice|bill|receipt}",
        "{my accountant|our bookkeeping|the tax office} {needs|wants|asks for} {a proper invoice|paper with your tax number|the bill as a PDF}",
        "where {can I|do I} {download|find|print} {my invoices|the receipt|a bill}?",
        "{the|my} {invoice|bill} {shows|has} the {wrong company name|old tax number|wrong date}{, please issue it again|}",
        "I {need|am missing} {paperwork|proof of purchase|a document} for {my expenses|the warranty|my taxes}",
        "{no|there was no} {receipt|bill|slip} {in the box|came with it}{, can I get one?|}",
    ],
    "login_problem": [
        "I {can't|cannot|am unable to} {log in|sign in|get into my account}",
        "{the|my} {password|login|code} {does not work|is not accepted|is wrong, it says}",
        "{I|we} {forgot|lost} {my password|the password|which email I used} {and the reset mail never comes|, how do I get back in?|}",
        "{it|the app} {throws me out|kicks me out|locks me out} {every time|after a second|as soon as I open it}",
        "my {account|profile} is {locked|blocked|gone}{, what now?|}",
        "the {text message|six digits|verification mail} {never arrives|comes too late|does not come}{ so I am stuck outside|}",
    ],
    "damaged_item": [
        "{it|the lamp|the screen|the mug} {arrived|came|was} {broken|cracked|in pieces|scratched}",
        "{the|my} {kettle|speaker|chair} {stopped working|died|makes a smell} {after two days|on the first evening|already}",
        "{the box was|everything was} {crushed|soaked|torn open} {and the glass inside is gone|and half of it leaks|}",
        "a {leg|screw|cable|button} is {missing|bent|loose}{, please send a replacement|}",
        "{it|this thing} {does not|won't} {turn on|charge|close}{, I want one that works|}",
        "I {unpacked|opened} it and {there is a dent|the zip is ripped|the colour is peeling off}",
    ],
    "membership_change": [
        "{I want to|can I|how do I} {upgrade|switch|move} to {plus|the business plan|the bigger plan}{?|}",
        "{please |}{end|stop|do not renew} my {membership|subscription|plan}",
        "what {do I get|changes} {with plus|if I take business|on the yearly plan}?",
        "{I|we} {pay|are paying} for {plus|business} {and never use it|, a smaller one would do|and want to go back to free}",
        "{can|could} {my colleague|my partner|two more people} {join|share|be added to} {my plan|our membership}?",
        "{the trial|my free month} {ends|is over} {soon|tomorrow} {and I do not want to go on|, what will it cost then?|}",
    ],
}

SETTLED: dict[str, list[str]] = {
    "track_delivery": ["the {parcel|delivery} {arrived|came} {on time|yesterday}", "tracking {works|looks fine}"],
    "return_item": [
        "the {return|label} {worked|went smoothly}",
        "I {sent|gave} the other one back {already|last week}",
    ],
    "refund_status": ["the refund {came through|arrived}", "I {got|received} my money back for the first one"],
    "cancel_order": [
        "the {cancellation|order I cancelled} {went through|is settled}",
        "I do not want to cancel anything",
    ],
    "change_address": [
        "my {new address|address} is {saved|correct}",
        "you {have|changed} the right street {already|by now}",
    ],
    "payment_failed": ["the payment went {through|well}", "my card {was accepted|works again}"],
    "invoice_copy": ["I {found|have} the {invoice|receipt}", "the bill {came|is right}"],
    "login_problem": ["I {can log in|am logged in} {again|now}", "the password reset worked"],
    "damaged_item": ["{nothing is broken|the replacement works}", "the {kettle|lamp} is {fine|in perfect shape}"],
    "membership_change": ["the {upgrade|plan change} {worked|is done}", "I {am happy with|keep} {plus|my plan}"],
}

AFTER_SETTLED = [
    "{settled}, but {ask}",
    "{settled}{, thanks for that|, good}. {now|one more thing:|what I need:} {ask}",
    "{ask}. {by the way|just so you know}, {settled}",
    "{settled} so {that is not it|this is about something else}. {ask}",
]

AFTER_OTHER = [
    "{last week|a month ago|yesterday|on Monday} I {wrote|asked|told you}: {other}. {that is solved|that got sorted|that one is done}. {now|today|this time}: {ask}",
    "{ask}. {forget|ignore|please drop} what I {wrote|asked|sent} {before|earlier|last time} ({other})",
    "my {colleague|wife|brother|neighbour} {wrote|asked}: {other}. {mine|my own question|my case} is {another one|different}: {ask}",
    "{ask}. that is {all|the only thing} I need, the {old|earlier|other} {ticket|message} ({other}) is {closed|settled|done}",
    "you {answered|replied to} {the wrong thing|something else}, namely: {other}. what I {asked|want|meant} was: {ask}",
]

OPENINGS = [
    "",
    "",
    "",
    "{hi|hello|hey}, ",
    "{hi there|good morning|dear team}, ",
    "{sorry to bother you|quick question}: ",
    "{urgent|help}! ",
]
CLOSINGS = [
    "",
    "",
    "",
    ", {thanks|thank you|cheers}",
    ". {please reply soon|I am waiting for your answer}",
    ". {not impressed|very annoyed|still a fan}",
]
