"""Sentence patterns, lower case and without a final mark, each list split into training and held-out patterns.

Slots: {d} a device, {e} a second device, {r} a room, {n} a number, {x} a topic. A held-out conversation uses held-out
patterns only, so that accuracy on it is about new sentences and not about new fillings.
"""

from __future__ import annotations

import random
import re

from names import Words as Patterns

COMMANDS: dict[str, Patterns] = {
    "turn_on": Patterns(
        (
            "turn on the {d}", "turn the {d} on", "switch on the {d}", "switch the {d} on", "put the {d} on", "put on the {d}",
            "{d} on", "start the {d}", "activate the {d}", "enable the {d}", "i want the {d} on", "the {d} should be on",
            "make sure the {d} is on", "power up the {d}", "i need the {d} on", "it's dark turn on the {d}", "turn {d} on",
            "go ahead and switch on the {d}", "i'd like the {d} on", "let's have the {d} on", "the {d} on",
            "turn on my {d}", "turn on {d}", "power on the {d}", "run the {d}", "have the {d} turned on", "the {d} needs to be on",
            "i want you to turn the {d} on", "i think we need the {d} on", "turn the {d} back on", "make the {d} go on",
            "get {d} on", "can we have the {d} on", "could i have the {d} turned on", "flip the {d} on", "i would like the {d} on", "the {d} has to be on", "set {d} on", "the {d} must be switched on", "would like to have the {d} on", "that {d} should be turned on", "bring the {d} on", "see that the {d} is on",
        ),
        (
            "get the {d} on", "could we have the {d} switched on", "flip on the {d}", "i would like the {d} turned on",
            "that {d} has to be switched on", "set the {d} to on", "fire up the {d}",
        ),
    ),
    "turn_off": Patterns(
        (
            "turn off the {d}", "turn the {d} off", "switch off the {d}", "switch the {d} off", "put the {d} off", "{d} off",
            "stop the {d}", "deactivate the {d}", "disable the {d}", "i want the {d} off", "the {d} should be off",
            "make sure the {d} is off", "power down the {d}", "i don't need the {d} any more", "it's too bright turn off the {d}",
            "go ahead and switch off the {d}", "i'd like the {d} off", "let's have the {d} off", "the {d} off", "turn {d} off",
            "turn off my {d}", "turn off {d}", "power off the {d}", "have the {d} turned off", "the {d} needs to be off",
            "i want you to turn the {d} off", "shut off the {d}", "shut down the {d}", "kill the {d}", "make the {d} go off",
            "get {d} off", "can we have the {d} off", "could i have the {d} turned off", "flip the {d} off", "i would like the {d} off", "the {d} has to be off", "set {d} off", "the {d} must be switched off", "would like to have the {d} off", "that {d} should be turned off", "bring the {d} off", "see that the {d} is off",
        ),
        (
            "get the {d} off", "could we have the {d} switched off", "flip off the {d}", "i would like the {d} turned off",
            "that {d} has to be switched off", "set the {d} to off", "shut the {d} off",
        ),
    ),
    "lock": Patterns(
        (
            "lock the {d}", "lock {d}", "lock up the {d}", "make sure the {d} is locked", "i want the {d} locked", "lock my {d}",
            "the {d} should be locked", "the {d} needs to be locked", "go ahead and lock the {d}", "have the {d} locked",
            "i'd like the {d} locked", "put the lock on the {d}",
            "get {d} locked", "can we have the {d} locked", "i would like the {d} locked", "the {d} has to be locked", "you should lock the {d}", "i want you to lock the {d}", "that {d} should be locked", "see that the {d} gets locked", "we need to lock the {d}",
        ),
        ("get the {d} locked", "i would like you to lock the {d}", "could we have the {d} locked", "that {d} has to be locked"),
    ),
    "unlock": Patterns(
        (
            "unlock the {d}", "unlock {d}", "make sure the {d} is unlocked", "i want the {d} unlocked", "unlock my {d}",
            "the {d} should be unlocked", "the {d} needs to be unlocked", "go ahead and unlock the {d}",
            "have the {d} unlocked", "i'd like the {d} unlocked", "release the {d}",
            "get {d} unlocked", "can we have the {d} unlocked", "i would like the {d} unlocked", "the {d} has to be unlocked", "you should unlock the {d}", "i want you to unlock the {d}", "that {d} should be unlocked", "see that the {d} gets unlocked", "we need to unlock the {d}",
        ),
        (
            "get the {d} unlocked", "i would like you to unlock the {d}", "could we have the {d} unlocked",
            "that {d} has to be unlocked",
        ),
    ),
    "open": Patterns(
        (
            "open the {d}", "open {d}", "open up the {d}", "make sure the {d} is open", "i want the {d} open", "open my {d}",
            "the {d} should be open", "the {d} needs to be open", "go ahead and open the {d}", "raise the {d}", "have the {d} opened",
            "i'd like the {d} open", "pull up the {d}",
            "get {d} opened", "can we have the {d} opened", "i would like the {d} opened", "the {d} has to be opened", "you should open the {d}", "i want you to open the {d}", "that {d} should be opened", "see that the {d} gets opened", "we need to open the {d}",
        ),
        ("get the {d} open", "i would like you to open the {d}", "could we have the {d} opened", "that {d} has to be opened"),
    ),
    "close": Patterns(
        (
            "close the {d}", "close {d}", "shut the {d}", "make sure the {d} is closed", "i want the {d} closed", "close my {d}",
            "the {d} should be closed", "the {d} needs to be closed", "go ahead and close the {d}", "lower the {d}",
            "have the {d} closed", "i'd like the {d} closed", "pull down the {d}",
            "get {d} closed", "can we have the {d} closed", "i would like the {d} closed", "the {d} has to be closed", "you should close the {d}", "i want you to close the {d}", "that {d} should be closed", "see that the {d} gets closed", "we need to close the {d}",
        ),
        ("get the {d} closed", "i would like you to close the {d}", "could we have the {d} closed", "that {d} has to be closed"),
    ),
    "set_brightness": Patterns(
        (
            "dim the {d} to {n} percent", "set the {d} to {n} percent", "put the {d} at {n} percent", "{d} to {n} percent",
            "make the {d} {n} percent bright", "brighten the {d} to {n} percent", "turn the {d} down to {n} percent",
            "turn the {d} up to {n} percent", "set the brightness of the {d} to {n} percent", "i want the {d} at {n} percent",
            "set the {d} brightness to {n}%", "change the {d} to {n} percent", "{d} {n} percent",
            "i'd like the {d} at {n} percent", "lower the {d} to {n} percent", "raise the {d} to {n} percent",
            "bring {d} to {n} percent", "i would like the {d} at {n} percent", "get the {d} to {n} percent", "give the {d} {n} percent", "{n} percent on the {d}", "{n} percent brightness for the {d}", "i want {n} percent on the {d}", "take the {d} down to {n} percent",
        ),
        (
            "bring the {d} to {n} percent", "i would like {n} percent on the {d}", "get the {d} down to {n} percent",
            "give the {d} {n} percent brightness",
        ),
    ),
    "set_temperature": Patterns(
        (
            "set the {r} to {n} degrees", "heat the {r} to {n} degrees", "make it {n} degrees in the {r}", "cool the {r} to {n}",
            "set the temperature in the {r} to {n} degrees", "i want {n} degrees in the {r}", "{r} to {n} degrees",
            "warm the {r} up to {n} degrees", "put the {r} at {n} degrees", "change the {r} to {n} degrees",
            "turn the temperature in the {r} to {n}", "set {r} temperature to {n}", "the {r} should be {n} degrees",
            "i'd like the {r} at {n} degrees", "cool the {r} down to {n} degrees", "set the {r} thermostat to {n}",
            "bring {r} to {n} degrees", "can we have {n} degrees in the {r}", "get the {r} to {n} degrees", "keep {r} at {n}", "i would like {n} degrees in the {r}", "{n} degrees in the {r}", "hold the {r} at {n} degrees", "take the {r} up to {n} degrees",
        ),
        (
            "bring the {r} to {n} degrees", "could we have {n} degrees in the {r}", "get the {r} up to {n} degrees",
            "keep the {r} at {n} degrees",
        ),
    ),
    "set_timer": Patterns(
        (
            "set a timer for {n} minutes", "start a {n} minute timer", "timer for {n} minutes", "set a {n} minute timer",
            "remind me in {n} minutes", "give me a timer of {n} minutes", "wake me in {n} minutes", "{n} minute timer",
            "count down {n} minutes", "i need a timer for {n} minutes", "start a timer for {n} minutes", "timer {n} minutes",
            "put {n} minutes on the timer", "set the timer to {n} minutes", "i want a timer for {n} minutes",
            "tell me when {n} minutes are up", "can we have a timer for {n} minutes", "start counting down {n} minutes", "ring in {n} minutes", "let me know in {n} minutes", "{n} minutes on the timer",
        ),
        (
            "let me know when {n} minutes are over", "could we have a timer of {n} minutes", "start counting {n} minutes",
            "ring the timer in {n} minutes",
        ),
    ),
}  # fmt: skip

ALL_LIGHTS: dict[str, Patterns] = {
    "turn_on": Patterns(
        (
            "turn on all the lights", "turn all lights on", "all lights on", "switch on all lights", "switch every light on",
            "turn on every light", "lights on everywhere", "i want all the lights on",
            "every light should be on", "put all the lights on", "all of the lights on", "get all the lights on", "make every light go on",
        ),
        ("put all of the lights on", "every light on"),
    ),
    "turn_off": Patterns(
        (
            "turn off all the lights", "turn all lights off", "all lights off", "switch off all lights", "switch every light off",
            "turn off every light", "lights off everywhere", "i want all the lights off", "turn everything dark",
            "every light should be off", "put all the lights off", "all of the lights off", "get all the lights off", "make every light go off",
        ),
        ("put all of the lights off", "every light off"),
    ),
}  # fmt: skip

PAIRS: dict[str, Patterns] = {
    "turn_on": Patterns(
        (
            "turn on the {d} and the {e}", "switch on the {d} and the {e}", "turn the {d} and the {e} on", "{d} and {e} on",
            "switch the {d} and the {e} on", "i want the {d} and the {e} on", "start the {d} and the {e}",
            "get {d} and {e} on", "both the {d} and the {e} on", "turn on {d} and {e}", "switch on both the {d} and the {e}", "the {d} and the {e} should be on", "put the {d} on and also the {e}",
        ),
        ("get the {d} and the {e} on", "turn on both the {d} and the {e}"),
    ),
    "turn_off": Patterns(
        (
            "turn off the {d} and the {e}", "switch off the {d} and the {e}", "turn the {d} and the {e} off", "{d} and {e} off",
            "switch the {d} and the {e} off", "i want the {d} and the {e} off", "stop the {d} and the {e}",
            "get {d} and {e} off", "both the {d} and the {e} off", "turn off {d} and {e}", "switch off both the {d} and the {e}", "the {d} and the {e} should be off", "put the {d} off and also the {e}",
        ),
        ("get the {d} and the {e} off", "turn off both the {d} and the {e}"),
    ),
}  # fmt: skip

AGAIN: dict[str, Patterns] = {
    "turn_on": Patterns(
        ("turn it on", "turn it back on", "switch it on again", "now turn it on", "on again", "put it on again", "turn it on again",
            "switch it back on", "actually turn it on", "no on again", "and on again please",
        ),
        ("actually switch it back on", "and on once more"),
    ),
    "turn_off": Patterns(
        ("turn it off", "turn it back off", "switch it off again", "now turn it off", "off again", "stop it", "turn it off again",
            "switch it back off", "actually turn it off", "no off again", "and off again please",
        ),
        ("actually switch it back off", "and off once more"),
    ),
    "lock": Patterns(("actually lock it", "no lock it", "lock it", "lock it again", "now lock it", "please lock it"), ("actually lock it back up",)),
    "unlock": Patterns(("actually unlock it", "no unlock it", "unlock it", "unlock it again", "now unlock it"), ("actually unlock it now",)),
    "open": Patterns(("actually open it", "no open it", "open it", "open it again", "now open it"), ("actually open it up",)),
    "close": Patterns(("actually close it", "no close it", "close it", "close it again", "now close it", "shut it again"), ("actually close it now",)),
}  # fmt: skip

QUESTIONS: dict[str, Patterns] = {
    "state_on": Patterns(
        (
            "is the {d} on", "is the {d} turned on", "is the {d} switched on", "is {d} on", "did i leave the {d} on",
            "is the {d} running", "is the {d} on right now", "is my {d} on", "do we have the {d} on", "is the {d} still on",
            "the {d} is on right", "did you turn the {d} on", "are you sure the {d} is on", "is the {d} active",
            "can you check if the {d} is on", "do you know whether the {d} is on", "was the {d} left on", "find out if the {d} is on", "i wonder whether the {d} is on", "have we got the {d} on", "could you see whether the {d} is on", "would the {d} be on", "has anyone left the {d} on", "let me know if the {d} is on", "has the {d} gone on",
        ),
        ("tell me if the {d} is on", "could the {d} be on", "has the {d} been left on"),
    ),
    "state_off": Patterns(
        (
            "is the {d} off", "is the {d} turned off", "is the {d} switched off", "is {d} off", "did i turn off the {d}",
            "did i turn the {d} off", "is the {d} off right now", "is my {d} off", "the {d} is off right",
            "can you check if the {d} is off", "do you know whether the {d} is off", "was the {d} left off", "find out if the {d} is off", "i wonder whether the {d} is off", "have we got the {d} off", "could you see whether the {d} is off", "would the {d} be off", "has anyone left the {d} off", "let me know if the {d} is off", "has the {d} gone off",
        ),
        ("tell me if the {d} is off", "has the {d} been switched off"),
    ),
    "state": Patterns(
        (
            "what is the state of the {d}", "how is the {d}", "what's the {d} doing", "what about the {d}", "check the {d}",
            "what is the status of the {d}", "status of the {d}", "tell me about the {d}", "and the {d}", "look at the {d}",
            "what do you know about the {d}", "show me the {d}", "how is the {d} set", "what is going on with the {d}", "let me know about the {d}", "give me news of the {d}", "could you check on the {d}", "i want to know about the {d}", "report on the {d}", "can you tell me about the {d}",
        ),
        ("what can you tell me about the {d}", "give me the status of the {d}", "how about the {d}"),
    ),
    "locked": Patterns(
        (
            "is the {d} locked", "did i lock the {d}", "is {d} locked", "is the {d} locked up", "is my {d} locked",
            "is the {d} still locked", "have i locked the {d}", "is the {d} secure", "the {d} is locked right",
            "can you check if the {d} is locked", "do you know whether the {d} is locked", "was the {d} left locked", "find out if the {d} is locked", "i wonder whether the {d} is locked", "have we got the {d} locked", "could you see whether the {d} is locked", "would the {d} be locked", "has anyone left the {d} locked", "let me know if the {d} is locked", "has somebody locked the {d}",
        ),
        ("tell me if the {d} is locked", "has the {d} been locked", "can you see if the {d} is locked"),
    ),
    "unlocked": Patterns(
        ("is the {d} unlocked", "did i leave the {d} unlocked", "is {d} unlocked", "is the {d} still unlocked",
            "can you check if the {d} is unlocked", "do you know whether the {d} is unlocked", "was the {d} left unlocked", "find out if the {d} is unlocked", "i wonder whether the {d} is unlocked", "have we got the {d} unlocked", "could you see whether the {d} is unlocked", "would the {d} be unlocked", "has anyone left the {d} unlocked", "let me know if the {d} is unlocked", "has somebody unlocked the {d}",
        ),
        ("tell me if the {d} is unlocked", "has the {d} been left unlocked"),
    ),
    "open": Patterns(
        (
            "is the {d} open", "did i leave the {d} open", "is {d} open", "is my {d} open", "is the {d} still open",
            "is the {d} up", "the {d} is open right",
            "can you check if the {d} is open", "do you know whether the {d} is open", "was the {d} left open", "find out if the {d} is open", "i wonder whether the {d} is open", "have we got the {d} open", "could you see whether the {d} is open", "would the {d} be open", "has anyone left the {d} open", "let me know if the {d} is open", "has somebody opened the {d}",
        ),
        ("tell me if the {d} is open", "has the {d} been left open"),
    ),
    "closed": Patterns(
        ("is the {d} closed", "did i close the {d}", "is {d} closed", "is my {d} closed", "is the {d} shut", "is the {d} down",
            "can you check if the {d} is closed", "do you know whether the {d} is closed", "was the {d} closed", "find out if the {d} is closed", "i wonder whether the {d} is closed", "have we got the {d} closed", "could you see whether the {d} is closed", "would the {d} be closed", "has anyone closed the {d}", "let me know if the {d} is closed", "has somebody closed the {d}",
        ),
        ("tell me if the {d} is closed", "has the {d} been closed"),
    ),
    "temperature": Patterns(
        (
            "what is the temperature in the {r}", "how warm is it in the {r}", "how cold is it in the {r}", "how hot is the {r}",
            "what's the temperature of the {r}", "temperature in the {r}", "how many degrees are in the {r}", "{r} temperature",
            "what temperature is the {r}", "is it warm in the {r}", "is it cold in the {r}", "how warm is the {r}",
            "tell me the temperature in the {r}", "how many degrees is it in the {r}", "what about the {r}",
            "what does it say for the {r}", "could you tell me how warm the {r} is", "do you know how warm it is in the {r}", "what do we have in the {r}", "can you check the {r} temperature", "read me the temperature of the {r}", "give me the degrees of the {r}", "what are we at in the {r}", "do you know the temperature in the {r}", "the {r} is how warm", "what is the {r} at", "what does the sensor in the {r} show", "i want to know how cold the {r} is", "how is the temperature in the {r}",
        ),
        (
            "do you know the {r} temperature", "what does the thermometer in the {r} say", "could you check how warm the {r} is",
            "what are the degrees in the {r}",
        ),
    ),
    "outside": Patterns(
        (
            "how warm is it outside", "what is the temperature outside", "how cold is it outside", "outside temperature",
            "how many degrees outside", "is it cold outside", "what's the temperature outdoors", "is it hot out there",
            "do you know how warm it is outside", "how warm is it out there", "what are the degrees outside", "could you tell me how cold it is outside", "is it freezing outdoors",
        ),
        ("how many degrees is it out there", "do you know how cold it is outdoors"),
    ),
    "weather": Patterns(
        (
            "what's the weather like", "how is the weather", "what is the weather", "tell me the weather", "is it raining",
            "weather please", "what's the weather today", "how's the weather outside", "is it sunny", "do i need an umbrella",
            "what kind of weather is it", "do you know the weather", "is it nice outside", "what does the weather look like", "how does it look outside", "could you tell me the weather", "is it foggy",
        ),
        ("what weather do we have", "give me the weather", "is the weather nice"),
    ),
    "time": Patterns(
        (
            "what time is it", "what's the time", "tell me the time", "how late is it", "do you have the time", "the time please",
            "can you tell me the time", "what is the time now", "time", "what time is it right now",
            "could you tell me the time", "do you know what time it is", "give me the time", "what does the clock say", "please say the time", "i need the current time",
        ),
        ("could you say what time it is", "do you know the time", "give me the current time"),
    ),
    "day": Patterns(
        (
            "what day is it", "which day is it", "what day is today", "what is today", "tell me the day", "what day of the week is it",
            "is it monday", "is it sunday today",
            "could you tell me what day it is", "do you know which day it is", "what day do we have", "which day of the week is it", "say what day it is",
        ),
        ("could you say what day it is", "which day of the week do we have"),
    ),
    "lights_on": Patterns(
        (
            "which lights are on", "what lights are on", "are any lights on", "which lights did i leave on", "lights that are on",
            "is any light on", "tell me which lights are on", "list the lights that are on", "are there lights on",
            "have we got lights on", "do i have any lights on", "what lights are switched on", "name every light that is on", "which of the lights are on", "what lights are still on", "have any lights been left on", "tell me the lights that are on", "lights on",
        ),
        ("do we have any lights on", "what lights are still switched on", "name the lights that are on"),
    ),
    "lights_off": Patterns(
        ("which lights are off", "what lights are off", "are any lights off", "tell me which lights are off", "is any light off",
            "which of the lights are off", "what lights are off right now", "list the lights that are off", "name every light that is off", "do we have lights that are off", "tell me the lights that are off",
        ),
        ("name the lights that are off", "what lights are switched off"),
    ),
    "lights_all": Patterns(
        (
            "what lights do i have", "which lights are there", "list all lights", "list the lights", "what lights do you know",
            "which lights can you control", "name all the lights",
            "what lights are there", "tell me about all the lights", "what lights do we have here", "which lights are in the house", "tell me every light", "give me all lights", "name the lights",
        ),
        ("what lights are in this home", "tell me all the lights"),
    ),
    "doors_unlocked": Patterns(
        (
            "which doors are unlocked", "are all doors locked", "is everything locked", "are the doors locked", "is any door unlocked",
            "did i forget to lock a door", "is the house locked",
            "have you locked all the doors", "which doors are not locked", "what doors are open to anyone", "do we have unlocked doors", "name the doors that are unlocked", "are there unlocked doors", "has everything been locked", "has every door been locked",
        ),
        ("have all the doors been locked", "what doors are unlocked"),
    ),
    "rooms": Patterns(
        ("which rooms are there", "what rooms do you know", "list the rooms", "list all rooms", "what rooms do i have",
            "what rooms are there", "tell me every room", "name all rooms", "what rooms are in this home", "which rooms do we have", "give me the rooms",
        ),
        ("tell me all the rooms", "name the rooms"),
    ),
}  # fmt: skip

THEN: Patterns = Patterns(
    (
        "and the {d}",
        "how is the {d}",
        "also the {d}",
        "what about the {d}",
        "and {d}",
        "and what about the {d}",
        "the {d} too",
    ),
    ("how about the {d}", "and also the {d}"),
)

SMALL_TALK: dict[str, tuple[Patterns, tuple[str, ...]]] = {
    "hello": (
        Patterns(
            ("hello", "hi", "hey", "hi there", "hello there", "good day", "hey you", "hello assistant", "hello my friend", "howdy"),
            ("hey there", "hi assistant", "greetings"),
        ),
        ("Hello! How can I help?", "Hi! What can I do for you?"),
    ),
    "morning": (
        Patterns(("good morning", "morning", "good morning to you", "hello good morning"), ("a very good morning",)),
        ("Good morning! How can I help?",),
    ),
    "evening": (
        Patterns(("good evening", "evening", "good evening to you", "hello good evening"), ("a very good evening",)),
        ("Good evening! How can I help?",),
    ),
    "night": (
        Patterns(
            ("good night", "night night", "i'm going to bed", "i am going to sleep now", "good night my friend", "sleep well"),
            ("a very good night", "i'm off to bed"),
        ),
        ("Good night! Sleep well.",),
    ),
    "how_are_you": (
        Patterns(
            ("how are you", "how are you doing", "how do you do", "are you well", "are you okay", "how is it going", "how do you feel"),
            ("how are you today", "how are things with you"),
        ),
        ("I am fine, thank you. How can I help?",),
    ),
    "thanks": (
        Patterns(
            (
                "thank you", "thanks", "thanks a lot", "thank you very much", "great thanks", "many thanks", "cheers", "perfect thank you",
                "thank you so much", "that's great thanks", "nice thanks",
            ),
            ("okay thank you", "thanks for that", "thanks so much"),
        ),
        ("You are welcome.", "My pleasure."),
    ),
    "bye": (
        Patterns(
            ("bye", "goodbye", "see you later", "bye bye", "see you", "that's all", "that is all for now", "talk to you later"),
            ("goodbye for now", "see you soon"),
        ),
        ("Goodbye!",),
    ),
    "joke": (
        Patterns(
            (
                "tell me a joke", "do you know a joke", "say something funny", "make me laugh", "a joke please", "tell a joke",
                "another joke", "i want to hear a joke", "can you tell me a joke", "know any jokes",
            ),
            ("let me hear a joke", "do you have a joke for me", "tell me something funny"),
        ),
        (
            "Why did the lamp go to school? It wanted to be brighter.",
            "What did one wall say to the other? I will meet you at the corner.",
            "Why was the clock sent out of class? It was tocking too much.",
        ),
    ),
    "abilities": (
        Patterns(
            (
                "what can you do", "what do you do", "how can you help me", "what are you able to do", "help", "what are your skills",
                "what can i ask you", "what can i say", "tell me what you can do", "help me",
            ),
            ("what can you do for me", "what sort of things can i ask you"),
        ),
        ("I can switch lights and devices, set temperatures and timers, and tell you about this home.",),
    ),
    "human": (
        Patterns(
            ("are you human", "are you a robot", "are you real", "are you a computer", "are you alive", "are you a person"),
            ("are you a machine", "are you a real person"),
        ),
        ("I am a small language model that runs in this home.",),
    ),
    "praise": (
        Patterns(
            ("well done", "good job", "you are great", "you are the best", "i like you", "nice work", "very good", "you are smart"),
            ("great job", "you are very good"),
        ),
        ("Thank you! I am glad to help.",),
    ),
    "blame": (
        Patterns(
            ("that was wrong", "you are stupid", "that is not right", "you made a mistake", "that's not what i wanted", "bad assistant"),
            ("that is wrong", "this is not what i wanted"),
        ),
        ("I am sorry. Please tell me again what you would like.",),
    ),
    "nothing": (
        Patterns(("never mind", "forget it", "nothing", "it's nothing", "no that's fine", "cancel that", "no thanks"), ("no forget that",)),
        ("All right.",),
    ),
}  # fmt: skip

IDENTITY = Patterns(
    (
        "who are you", "what is your name", "what's your name", "what are you called", "do you have a name", "tell me your name",
        "who am i talking to", "your name please", "what should i call you",
    ),
    ("may i know your name", "who is this", "how are you called"),
)  # fmt: skip

REPEAT = Patterns(
    (
        "say {x}",
        "i want to hear {x}",
        "say these words {x}",
        "repeat the words {x}",
        "please repeat {x}",
        "say {x} for me",
        "repeat after me {x}",
        "please say {x}",
        "repeat {x}",
        "can you say {x}",
        "say the words {x}",
    ),
    ("i want you to say {x}", "say this {x}"),
)

CANNOT = Patterns(
    (
        "order a pizza", "call my mother", "play some music", "send an email to {x}", "book a table for two", "buy some milk",
        "call {x}", "play {x}", "drive me to work", "clean the house", "write a letter to {x}", "take a picture", "sing a song",
        "make me a coffee", "walk the dog", "order a taxi", "send a message to {x}", "text {x}", "read me the news", "cook dinner",
        "water the plants", "wash the dishes", "pay the bills", "call the police", "find my keys", "record a video", "go shopping",
        "write a poem", "write some code", "translate this into french", "search the internet for {x}", "look up {x}",
        "show me a picture of {x}", "buy a ticket to {x}", "book a flight to {x}", "read me a story", "feed the cat",
        "make a sandwich", "do my homework", "play a game with me", "post this on the internet", "order {x} online",
        "charge my phone", "fix the roof", "paint the wall", "iron my shirt", "book me a hotel in {x}", "turn the page",
        "open a bottle of wine", "open a bank account", "close my bank account", "set the table", "light a candle", "print {x}",
        "call a doctor", "make a phone call", "put {x} on my shopping list", "add {x} to my calendar", "cancel my appointment",
    ),
    (
        "order some flowers", "phone my brother", "play my favorite song", "reserve a seat for {x}", "email {x}", "bake a cake",
        "mow the lawn", "vacuum the floor", "write an essay about {x}", "buy {x} for me", "take out the trash", "do the laundry",
        "invite {x} to dinner", "download a movie", "dial the number of {x}",
    ),
)  # fmt: skip

UNKNOWN = Patterns(
    (
        "who is {x}", "what is the capital of {x}", "how tall is {x}", "who invented {x}", "when was {x} born", "where is {x}",
        "how old is {x}", "what is {x}", "how far is it to {x}", "who wrote {x}", "what does {x} mean", "how do i cook {x}",
        "how much does {x} cost", "why is the sky blue", "how many people live in {x}", "what is the meaning of life",
        "who won the football game", "who is the president of {x}", "what happened in {x}", "tell me about the history of {x}",
        "how do you spell {x}", "what language do they speak in {x}", "when did the war end", "what is seven times eight",
        "how many legs does a spider have", "what is the square root of nine", "why do cats purr", "how does {x} work",
        "what is the biggest animal", "who painted {x}", "what is the population of {x}", "how many planets are there",
        "what is in the news", "will it rain tomorrow", "what will the weather be tomorrow", "do you like {x}", "do you know {x}",
        "what is your favorite color", "how do i get to {x}", "what year did {x} start", "how heavy is {x}", "where was {x} made",
        "what is the best {x}", "when does the store open", "why is {x} so expensive", "what is two plus two", "who are {x}",
        "explain {x} to me", "tell me something about {x}", "is {x} dangerous", "can {x} fly", "where can i buy {x}",
        "what should i wear", "what should i eat", "who is my neighbor", "where is my phone", "what is my name", "do you love me",
        "when is {x}", "who discovered {x}", "which country is the largest", "what is the speed of light",
    ),
    (
        "who was the first man on the moon", "what is the longest river", "who sings {x}", "how deep is {x}", "who founded {x}",
        "how long does it take to get to {x}", "what color is {x}", "when did {x} die", "what do you think about {x}",
        "how many countries are there", "why do people like {x}", "is {x} healthy", "what is ten minus three",
        "which team won yesterday", "who is the king of {x}",
    ),
)  # fmt: skip

TOPICS = Patterns(
    (
        "paris", "france", "pizza", "chess", "the moon", "einstein", "germany", "the telephone", "rice", "spain", "a computer",
        "the queen", "football", "mount everest", "china", "the ocean", "jazz", "my boss", "my sister", "john", "mary", "a whale",
        "the radio", "chicken soup", "rome", "india", "bread", "shakespeare", "the internet", "gold", "a guitar", "london", "tea",
        "the sun", "a horse", "poland", "lucky", "mister smith", "bananas", "the station", "my friend", "an elephant", "batteries",
    ),
    (
        "brazil", "sushi", "mozart", "the eiffel tower", "my cousin", "volcanoes", "a tiger shark", "canada", "cheese", "karate",
        "the airport", "doctor brown", "penguins", "a violin", "tokyo",
    ),
)  # fmt: skip

# What no list of patterns can hold all of: requests and questions put together from parts, for training only. No part
# is a word by which a held-out pattern is known.
_DEEDS = (
    "call text bring fetch wash clean paint draw sell rent lift carry push pull hug kiss teach help marry hire pay mail send post "
    "ship sharpen polish brush comb cut chop peel boil fry roast grill eat drink taste smell knit sew repair mend glue build "
    "assemble measure weigh count hide steal throw catch kick hunt chase shave bathe dress pack unpack ride drive steer fly park "
    "order book watch follow like share copy delete install update publish sign fill empty fold hang dig bury pick collect greet"
).split()
_THINGS = (
    "my dog; the cat; a horse; my boss; the neighbors; my parents; a friend; my teacher; the children; the baby; my shoes; a shirt; "
    "some socks; the dishes; a pan; some soup; a salad; two eggs; some noodles; a steak; an apple; some water; a beer; the car; "
    "my bike; a boat; the train; a bus; a ticket; a hotel; a restaurant; the newspaper; a book; a magazine; a letter; a parcel; "
    "my photos; a video; the website; an app; my account; a contract; some money; the bill; my taxes; a tree; the roses; the grass; "
    "a hole; the fence; a chair; the sofa; my bag; the suitcase; a present; a doll; a ball; the guitar; a drum; a tune; a picture; "
    "my hair; his nails; the fire; a party; a meeting; the weekend; my holiday; a {x}; the {x}; {x}; {x} and {x}; my {x}; some {x}"
).split("; ")
_ENDINGS = ";;;; tomorrow; on monday; tonight; for my wife; with {x}; to {x}; from the shop; in town".split(";")
_ASKED = (
    "who {built,made,found,owns,leads,killed,married,stole,likes,knows,teaches,designed,won,lost,plays,directed} {x}; "
    "what {is,are,was,were} {the name of,the price of,the size of,the weight of,the age of,the purpose of,inside,behind,under} {x}; "
    "what is the {oldest,smallest,largest,highest,fastest,heaviest,rarest,strongest,hottest,cheapest} "
    "{mountain,lake,city,car,plane,bird,fish,tree,building,bridge,metal,star,island,book,movie}; "
    "how {big,small,strong,fast,rich,famous,dangerous,smart,wide,far,cold,loud,bright} {is,are,was} {x}; "
    "how many {people,cars,dogs,stars,bones,teeth,words,pages,miles,songs,goals,friends} {are in,does,has} {x}; "
    "{when,where,why,how} {did,does,will,can,should} {x} {end,begin,happen,live,work,sleep,grow,move,stop,arrive,eat,win,break}; "
    "why {is,are,was} {x} so {big,small,popular,famous,bad,good,hard,easy,slow,rare,sad,funny}; "
    "{when,where} {is,was} {x} {born,made,built,sold,held,found,written,buried}; "
    "what is {three,four,five,six,eight,nine,twenty,fifty} {plus,times,and,divided by} {two,three,four,five,six,eleven,twelve}; "
    "is {x} {big,small,alive,asleep,true,expensive,cheap,married,old,young,rich,made of metal,in europe}; "
    "{do,did,can,will} {you,people,i,we,they} {hear,eat,see,buy,visit,need,remember,believe in,speak,win} {x}; "
    "tell me {who,where,when,why,how} {x} {is,was,works,lives,went,started}; explain {how,why} {x} {works,exists,fell,grew}"
).split("; ")


def impossible(rng: random.Random) -> str:
    """A request that has nothing to do with a home, with slots {x}."""
    return f"{rng.choice(_DEEDS)} {rng.choice(_THINGS)}{rng.choice(_ENDINGS)}"


def unknown(rng: random.Random) -> str:
    """A question that has nothing to do with a home, with slots {x}."""
    parts = re.split(r"\{([^{}]*,[^{}]*)\}", rng.choice(_ASKED))
    return "".join(rng.choice(part.split(",")) if index % 2 else part for index, part in enumerate(parts))


OPENERS = Patterns(
    ("please", "hey", "ok", "now", "could you", "can you", "would you please", "could you please", "can you please", "hey can you",
     "would you", "so", "and now", "um"),
    ("kindly", "alright then", "would you be so kind and", "say could you", "next"),
)  # fmt: skip
CLOSERS = Patterns(
    ("please", "for me", "now", "right now", "thanks", "thank you", "will you", "again", "would you"),
    ("if you can", "at once", "if you don't mind"),
)
ASIDES = Patterns(
    ("hey", "please tell me", "so", "ok", "can you tell me", "tell me", "i wonder", "say", "do you know"),
    ("quick question", "let me ask", "one more thing"),
)
