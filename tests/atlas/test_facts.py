from random import Random

import pytest

from limbeck.atlas.facts import RELATIVE, world
from limbeck.atlas.speech import leaf

KINDS = ["territory", "language", "zone", "amount", "measure", "date", "month", "interval", "relative", "weekday"]
KINDS += ["time", "percent", "number"]


def test_real_facts():
    spoken = world("en")
    assert spoken.money["RO"] == "RON"
    assert spoken.spoken["RO"][0] == ("ro", 0.9)
    assert spoken.written["uk"] == "Cyrl"
    assert "Europe/Bucharest" in spoken.clocks["RO"]


def test_a_world_of_two_locales_holds_what_both_name():
    both, one, other = world("ro", "mt"), world("ro"), world("mt")
    assert set(both.units) == set(one.units) & set(other.units)
    assert set(both.languages) == set(one.languages) & set(other.languages)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_the_generator_alone_and_vary(kind):
    spoken = world("ro")
    first = [spoken.draw(kind, Random(i)) for i in range(30)]
    assert first == [spoken.draw(kind, Random(i)) for i in range(30)]
    assert len(set(first)) > 3
    assert all(leaf(fact, "ro") for fact in first)


def test_relative_dates_keep_their_unit():
    for unit, most in RELATIVE.items():
        text = leaf(world("en").draw("relative", Random(0))._replace(value=(unit, most)), "en")
        assert text == f"in {most} {unit}s"


def test_where_no_unit_has_a_name_a_number_stands_in():
    assert not world("ab").units
    assert world("ab").measure(Random(0)).kind == "number"


def test_places_are_different_and_hold_the_first():
    for seed in range(20):
        places = world("ro").places(Random(seed), 4, "RO")
        assert len(set(places)) == 4
        assert ("RO",) in {place.value for place in places}
