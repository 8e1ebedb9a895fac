"""What is answered without the language model, at once and always alike: the time, timers, "stop"."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from voice_assistant.spelling import read_number
from voice_assistant.timers import Timers, in_words

_UNITS = {"second": 1, "seconds": 1, "minute": 60, "minutes": 60, "hour": 3600, "hours": 3600}
_POLITE = re.compile(r"^(?:(?:please|now|ok|okay|hey|can you|could you|would you|so) )+|(?: (?:please|now|for me))+$")
_TIME = re.compile(r"(?:what time is it|what is the time|what's the time|tell me the time)")
_DAY = re.compile(r"(?:what day is (?:it|today)|what is the date(?: today)?|which day is it)")
_STOP = re.compile(r"(?:stop|cancel|never mind|quiet|be quiet|shut up|that's enough|stop it)")
_CANCEL = re.compile(r"(?:cancel|stop|delete|end) (?:the|my|all|all the|all my) timers?")
_LEFT = re.compile(r"how (?:much time|long) (?:is left|does the timer have)(?: on the timer)?|how long is left.*")
_SET = re.compile(
    r"(?:set|start|give me|make|put)? ?(?:a|the|me a|an)? ?timer (?:for|of|to) (?P<number>.+?) (?P<unit>\w+)"
    r"|(?:set|start|give me|make) (?:a|an)? ?(?P<number2>.+?) (?P<unit2>\w+) timer"
)


class LocalCommands:
    """now: the time of day."""

    def __init__(self, timers: Timers, now: Callable[[], datetime]) -> None:
        self._timers, self._now = timers, now

    def answer(self, text: str) -> str | None:
        """What to say to `text`, and does it; "" if nothing is to be said, None if it is not for here."""
        text = _POLITE.sub("", " ".join(text.lower().split())).strip(" .!?")
        now = self._now()
        if _TIME.fullmatch(text):
            return f"It is {now.hour}:{now:%M}."
        if _DAY.fullmatch(text):
            return f"It is {now:%A}, {now:%B} {now.day}."
        if _STOP.fullmatch(text):
            return ""
        if _CANCEL.fullmatch(text):
            n_stopped = self._timers.cancel()
            return (
                "There is no timer."
                if n_stopped == 0
                else "The timer is off."
                if n_stopped == 1
                else "All timers are off."
            )
        if _LEFT.fullmatch(text):
            left = self._timers.left_s()
            return f"{in_words(left[0])} are left." if left else "There is no timer."
        if match := _SET.fullmatch(text):
            number = read_number((match["number"] or match["number2"]).split())
            unit = _UNITS.get(match["unit"] or match["unit2"])
            if number and unit:
                return self.set_timer(number * unit)
        return None

    def set_timer(self, duration_s: int) -> str:
        try:
            self._timers.start(duration_s)
        except ValueError:
            return "I can set timers of up to a day."
        return f"The timer is set to {in_words(duration_s)}."
