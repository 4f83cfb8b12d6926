"""The small language that nano learns: its vocabulary, and a phrase grammar from which sentences are drawn.

Words do not follow each other by chance. What sounds alike is told apart by its neighbours, often by a later one: "wait four
minutes" and "wait for ten minutes"; "turn two degrees left" and "turn to channel two"; "oscar eight five" and "oscar ate at noon";
round tens go with percent, degrees and euros, teens with dollars, pounds and hours, so that "seventy" and "seventeen" are settled by
what is counted. That is why a recogniser which waits longer can do better here, as it can in any real language.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

WORDS: tuple[str, ...] = tuple(
    """
    zero oh one two three four five six seven eight nine
    ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
    twenty thirty forty fifty sixty seventy eighty ninety
    hundred thousand point minus plus percent
    alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike
    november oscar papa quebec romeo sierra tango uniform victor whiskey yankee zulu
    january february march april may june july august september october december
    monday tuesday wednesday thursday friday saturday sunday
    noon midnight half quarter past morning evening minutes hours next
    dollars euros pounds cents
    north south east west degrees
    start stop go turn left right up down on off forward backward open shut call send set play pause wait cancel repeat move show
    help yes no hello please thanks
    to for at in the and of from is my we ate
    door light timer alarm message number room gate channel page table dinner
    """.split()  # noqa: SIM905 - a list of 150 quoted words would hide the groups
)
# "november" is a letter and a month; "o'clock" and "a m" are left out because normalisers of text take them apart, "x-ray" because
# it is two words in one.

LONGEST_WORDS = 14  # of a sentence

_RULES_TEXT = """
sentence    = 32 <order> | 9 <amount> | 18 <date> | 11 <clock> | 6 <phone> | 9 <place> | 18 <spelled> | 11 <meal> | 7 <sum> | 11 <reply>

reply       = yes | no | stop | help | hello | thanks | please | pause | wait | cancel | repeat | start | go | next | left | right | up
            | down | on | off | forward | backward | 2 yes | 2 no | 2 hello | 2 up | 2 down | 5 off | 2 forward | 2 backward | yes please
            | no thanks | hello and thanks | hello <name> | thanks <name> | yes <weekday> | no <weekday> | yes <name> | no stop
            | help please

digit       = 9 <one_to_9> | zero | oh
one_to_9    = one | two | three | four | five | six | seven | eight | nine
ten_to_19   = ten | eleven | twelve | thirteen | fourteen | fifteen | sixteen | seventeen | eighteen | nineteen
tens        = twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety
two_digits  = <tens> <one_to_9>
below_100   = 2 <one_to_9> | 3 <ten_to_19> | 1 <tens> | 2 <two_digits>
hundreds    = <one_to_9> hundred | <one_to_9> hundred <below_100> | <one_to_9> hundred and <below_100>
thousands   = <one_to_9> thousand | <ten_to_19> thousand | <tens> thousand | <two_digits> thousand
            | <one_to_9> thousand <one_to_9> hundred | <ten_to_19> thousand <hundreds>
number      = 4 <below_100> | 2 <hundreds> | <thousands>
decimal     = <one_to_9> point <digit> | <tens> point <digit> | zero point <digit> <digit> | <two_digits> point <digit> <digit>
            | <ten_to_19> point <digit>
round       = 5 <tens> | <two_digits>
teen        = 5 <ten_to_19> | <one_to_9>

name        = charlie | juliet | mike | oscar | romeo | victor
letter      = alpha | bravo | charlie | delta | echo | foxtrot | golf | hotel | india | juliet | kilo | lima | mike | november | oscar
            | papa | quebec | romeo | sierra | tango | uniform | victor | whiskey | yankee | zulu
month       = january | february | march | april | may | june | july | august | september | october | november | december
weekday     = monday | tuesday | wednesday | thursday | friday | saturday | sunday
side        = left | right
way         = north | south | east | west
updown      = up | down
switch      = on | 2 off
forth       = forward | backward
thing       = door | light | gate | table
placed      = room | gate | channel | page | table

amount      = 3 <paid> | 2 <share> | <paid> and <share> | <paid> for <name> | <paid> for dinner | <share> of <paid> | <share> of my number
paid        = <teen> dollars | <teen> pounds | <round> euros | <round> cents | <hundreds> euros | <thousands> dollars | <thousands> pounds
            | <teen> dollars and <round> cents | <teen> pounds <round> | <round> euros and <round> cents
share       = 4 <round> percent | <decimal> percent | half of <paid> | half of the <thing> | quarter of <paid> | minus <round> percent
            | plus <round> percent

date        = 4 <weekday> <month> <day> | 3 <day> <month> <year> | 2 <month> <day> | <month> <day> <year> | on <weekday>
            | on <month> <day> | next <weekday> | 2 from <month> <day> to <month> <day> | from <weekday> to <weekday>
            | <weekday> to <weekday> | <month> to <month> | 2 <weekday> <morning> | <weekday> is <month> <day> | next <month>
            | <day> of <month> | the <day> of <month> <year> | in <month> | in <month> <year>
day         = 2 <one_to_9> | 3 <ten_to_19> | twenty | 2 twenty <one_to_9> | thirty | thirty one
year        = 2 nineteen <two_digits> | nineteen <tens> | nineteen oh <one_to_9> | twenty <ten_to_19> | 2 twenty twenty <one_to_9>
            | two thousand <one_to_9>
morning     = morning | evening | noon | midnight

clock       = at <time> | at <time> on <weekday> | <weekday> at <time> | from <time> to <time> | <time> to <time>
            | the <time> is <weekday> | in <teen> minutes | in <teen> hours | in half <teen> hours | <teen> hours and <minute> minutes
            | <minute> minutes to <hour> | <minute> minutes past <hour>
time        = 4 <hour> <minute> | 2 <hour> | <hour> in the morning | <hour> in the evening | <hour> on <weekday> <morning>
            | 2 half past <hour> | 2 quarter past <hour> | 2 quarter to <hour> | <minute> past <hour> | <minute> to <hour> | 2 noon
            | 2 midnight
hour        = 8 <one_to_9> | ten | eleven | twelve
minute      = 2 oh <one_to_9> | <one_to_9> | 3 <ten_to_19> | 2 <tens_of_60> | 3 <tens_of_60> <one_to_9>
tens_of_60  = twenty | thirty | forty | fifty

phone       = call <digit> <digit> <digit> <four> | my number is <three> <four> | number <three> <three> <four>
            | the number for <name> is <three> <four> | call <name> at <three> <four> | <three> <three> <four>
            | <name> is on <three> <four> | plus <digit> <digit> <three> <four>
three       = <digit> <digit> <digit>
four        = <digit> <digit> <digit> <digit>

place       = <angle> <way> | <angle> <way> <angle> <way> | <latitude> <way> | <teen> hours <way> | <way> of room <number>
            | minus <latitude> | <latitude> <way> <latitude> <way> | <way> and <way> | <forth> <number>
            | <thing> <number> <way> of <placed> <number> | <round> degrees
angle       = <round> degrees | <round> degrees <minute> minutes | <two_digits> degrees
latitude    = <tens> point <digit> | <two_digits> point <digit> <digit> | minus <one_to_9> point <digit> <digit>

spelled     = 2 <letter> <letter> | 4 <letter> <letter> <letter> | 3 <letter> <letter> <letter> <letter>
            | 3 <letter> <letter> <letter> <letter> <letter> | <letter> <letter> <digit> <digit> | <letter> <three> | <letter> <digit>
            | <name> <four> | <letter> <letter> <letter> <digit> <digit> <digit> | my message is <letter> <letter> <letter>

meal        = we ate | we ate at <time> | we ate dinner | <name> ate at <time> | <name> ate dinner at <time> | <name> ate on <weekday>
            | <name> ate for <paid> | table for <one_to_9> at <time> | table <one_to_9> is for <one_to_9>
            | dinner for <one_to_9> on <weekday> | dinner is at <time> | we ate dinner at table <number> | dinner from <time> to <time>
            | <name> ate half of dinner | we ate for <paid> | dinner for <name>

sum         = <number> plus <number> | <number> minus <number> | <decimal> plus <decimal> | <decimal> minus <decimal> | minus <number>
            | plus <number> | minus <decimal> | plus <decimal> | 2 <decimal> | <number> | <thousands> plus <hundreds>

order       = 5 <command> | please <command> | <command> please | <command> and <command> | <command> <when> | <command> thanks
when        = at <time> | on <weekday> | next <weekday> | in <teen> minutes | for <teen> minutes | in the <morning>
command     = 3 <moving> | 2 <opening> | 2 <calling> | 3 <setting> | 3 <playing> | 2 <stopping>
moving      = turn <side> | turn <side> and go <updown> | turn the light <updown> | turn the <thing> <switch> | turn <switch> the <thing>
            | turn <switch> alarm <one_to_9> | turn <one_to_9> degrees <side> | turn <round> degrees <side> | turn to channel <number>
            | turn to the <side> | go to <placed> <number> | go to the <thing> | go <updown> | go <way> | go <one_to_9> hours <way>
            | go <side> at the <thing> | move <updown> | move <side> | 3 move <forth> | 3 go <forth> | move <forth> and <updown>
            | move <one_to_9> <forth> | move table <one_to_9> to room <number> | move to the <side> | move <one_to_9> <side>
            | move the <thing> <updown> | go from <way> to <way>
opening     = open the <thing> | open <placed> <number> | open <thing> <one_to_9> | shut the <thing> | shut gate <number>
            | shut <thing> <one_to_9> | shut door <number> | open my message | open the door for <name> | shut the gate at <time>
calling     = call <name> | call room <three> | call for help | call <name> at <time> | send the message to <name>
            | send help to room <number> | send <paid> to <name> | send <one_to_9> to <name> | send my number to <name> | send help
            | hello <name> call <name>
setting     = set the timer for <teen> minutes | set my alarm for <time> | set the light to <round> percent | set the alarm for <weekday>
            | set timer <one_to_9> to <teen> hours | set channel <one_to_9> to <number> | start the timer | start alarm <one_to_9>
            | start at page <number> | start timer <one_to_9> for <name>
playing     = play channel <number> | play for <teen> hours | play <one_to_9> hours | pause for <teen> minutes | pause <one_to_9> minutes
            | wait for <teen> minutes | wait <one_to_9> minutes | wait for <name> | repeat the number | repeat <number>
            | repeat message <one_to_9> | show page <number> | show my message | show the message from <name> | show <one_to_9> of my page
            | wait in room <number> | play the message | pause channel <number>
stopping    = stop the <thing> | stop the timer | stop alarm <one_to_9> | cancel the alarm | cancel dinner on <weekday> | cancel my timer
            | cancel message <number> | stop at gate <number> | stop at the <thing> | help <name> | cancel table <one_to_9>
            | stop at <number>
"""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One right-hand side: words, and the names of rules in angle brackets."""

    weight: float
    parts: tuple[str, ...]


def _read(text: str) -> dict[str, tuple[Alternative, ...]]:
    rules = {}
    for name, body in re.findall(r"^(\w+) *= ((?:.+\n)(?: +\|.+\n)*)", text, re.MULTILINE):
        alternatives = []
        for parts in (option.split() for option in body.split("|")):
            weight, parts = (float(parts[0]), parts[1:]) if parts[0].isdecimal() else (1.0, parts)
            alternatives.append(Alternative(weight, tuple(parts)))
        rules[name] = tuple(alternatives)
    return rules


RULES = MappingProxyType(_read(_RULES_TEXT))


def sentence(random: np.random.Generator) -> list[str]:
    """One spoken sentence of 1 to LONGEST_WORDS words; those that come out longer are drawn again."""
    while True:
        words = _expand("sentence", random)
        if len(words) <= LONGEST_WORDS:
            return words


Part = Literal["train", "development", "test"]


def part(words: Sequence[str]) -> Part:
    """Which part of the corpus may say this sentence: decided by its text alone, so that no seed can ever mix them.

    One in twenty sentences is kept for development and one in twenty for tests. Those of up to three words are all for training:
    there are too few of them to be split.
    """
    if len(words) < 4:
        return "train"
    drawn = hashlib.sha256(" ".join(words).encode()).digest()[0]
    return "test" if drawn < 13 else "development" if drawn < 26 else "train"


def sentence_of(wanted: Part, random: np.random.Generator) -> list[str]:
    """One sentence of that part."""
    while part(words := sentence(random)) != wanted:
        pass
    return words


def _expand(rule: str, random: np.random.Generator) -> list[str]:
    alternatives = RULES[rule]
    at = random.random() * sum(alternative.weight for alternative in alternatives)
    for chosen in alternatives:
        at -= chosen.weight
        if at < 0:
            break
    words = []
    for symbol in chosen.parts:
        words += _expand(symbol[1:-1], random) if symbol.startswith("<") else [symbol]
    return words
