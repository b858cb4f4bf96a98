"""What a run wrote, in one line."""

from llava_probe.cli.told import told_folder


def test_the_size_is_told_of_the_folder_and_not_of_its_last_file(tmp_path):
    sizes = {"answer.json": 200_000, "maps/map.npz": 1_000_000, "page.html": 400_000}
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    said = told_folder(tmp_path, [tmp_path / name for name in sizes])
    assert said == f"{tmp_path}/ (1.6 MB): answer.json, maps/, page.html"
