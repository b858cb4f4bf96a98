"""The house of CONTRIBUTING.md: what the script finds in a made-up package with one fault of each kind, and in ours."""

import textwrap

import house
import pytest

ORDER = (("ground.py", "cellar/"), ("hall/",), ("attic/", "roof.py"))


@pytest.fixture
def crooked(tmp_path):
    """Three floors, and one of each thing that is wrong: see the claims."""
    return written(
        tmp_path / "crooked",
        {
            "__init__.py": "from crooked.roof import top",  # the front door may know everything
            "ground.py": "",
            "cellar/__init__.py": "",
            "cellar/stores.py": "def fetch():\n    from crooked.hall import door",  # upward, inside a function
            "hall/__init__.py": "from .door import door\nfrom .clock import time",
            "hall/clock.py": "import crooked.ground",
            "hall/door.py": """
                from typing import TYPE_CHECKING

                if TYPE_CHECKING:
                    from crooked.attic.beds import Bed  # upward, and a circle with the bed's own import
            """,
            "hall/bell.py": "from crooked.hall import door\n" + "\n" * house.LONGEST,  # too long
            "attic/__init__.py": "",
            "attic/beds.py": "from crooked.hall.door import door",
            "roof.py": "from crooked.attic import beds",
            "shed.py": "",  # nobody said where it stands
        },
    )


@pytest.fixture
def straight(tmp_path):
    return written(
        tmp_path / "straight",
        {
            "__init__.py": "",
            "ground.py": "",
            "hall/__init__.py": "from straight.hall.door import door\nfrom straight.hall.clock import time",
            "hall/bell.py": "",
            "hall/clock.py": "",
            "hall/door.py": "from straight.ground import floor",
            "hall/cupboard/box.py": "",
            "roof.py": '"""Rain stays out."""\nfrom straight.hall import door',
        },
    )


def written(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return house.read(folder, ORDER)


def test_circles_of_rooms_and_of_files_are_found_with_the_arrows_that_close_them(crooked):
    wrong = crooked.wrong()
    (rooms,), (files,) = wrong["circles of rooms"], wrong["circles of files"]
    assert rooms.split("\n")[0] == "attic/, hall/"
    assert files.split("\n")[0] == "attic/beds.py, hall/door.py"
    assert "hall/door.py:5 → attic/beds.py (for types only)" in rooms
    assert "attic/beds.py:1 → hall/door.py (at the top)" in files


def test_an_upward_arrow_is_found_wherever_it_stands(crooked):
    assert crooked.wrong()["arrows upward"] == [
        "cellar/stores.py:2 → hall/door.py (inside a function)",
        "hall/door.py:5 → attic/beds.py (for types only)",
    ]


def test_a_long_file_and_a_room_without_a_place_are_told(crooked):
    wrong = crooked.wrong()
    assert wrong["rooms without a place in ORDER"] == ["shed.py"]
    assert wrong[f"files of more than {house.LONGEST} lines"] == [f"hall/bell.py ({house.LONGEST + 1})"]


def test_the_front_door_is_no_room(crooked):
    assert "__init__.py" not in crooked.rooms
    assert not [arrow for arrow in crooked.arrows if arrow.source == "__init__.py"]


def test_nothing_is_wrong_with_a_house_that_stands(straight):
    assert not any(straight.wrong().values())


def test_a_room_stands_one_floor_above_the_highest_that_it_imports(straight):
    assert straight.floors == {"ground.py": 0, "hall/": 1, "roof.py": 2}


def test_rooms_of_one_circle_share_a_floor_and_lift_what_stands_on_them(crooked):
    floors = crooked.floors
    assert floors["hall/"] == floors["attic/"] == 1
    assert floors["cellar/"] == floors["roof.py"] == 2


def test_the_picture_has_the_floors_from_the_top_and_files_as_their_room_names_them(straight):
    assert straight.picture() == " 2  roof.py\n 1  hall/ (cupboard/, door, clock, bell)\n 0  ground.py"


def test_first_lines_of_docstrings_are_told_when_asked_for(straight):
    assert "Rain stays out." in straight.table(docs=True)
    assert "Rain stays out." not in straight.table()


def test_the_picture_goes_between_its_markers_and_nowhere_else():
    page = f"Before.\n\n{house.MARKERS[0]}\nold\n{house.MARKERS[1]}\n\nAfter.\n"
    assert house.placed(page, "new") == f"Before.\n\n{house.MARKERS[0]}\n```\nnew\n```\n{house.MARKERS[1]}\n\nAfter.\n"
    with pytest.raises(SystemExit, match="has no"):
        house.placed("Before.", "new")


def test_contributing_has_the_picture_of_today():
    page = house.PAGE.read_text(encoding="utf-8")
    assert page == house.placed(page, house.read(house.PACKAGE).picture()), "run: python tools/house.py --write"


def test_nothing_is_wrong_with_ours():
    wrong = {kind: told for kind, told in house.read(house.PACKAGE).wrong().items() if told}
    assert not wrong
