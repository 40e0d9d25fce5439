"""The page that the command draws of a room, in a browser."""

import pytest

from hf_any3d.data.files import PointCloudData, write_point_cloud
from tests.cli.conftest import run
from tests.pipelines.test_room_layouts import ROOM, folder as folder, scan


@pytest.mark.filterwarnings("ignore")
def test_the_page_of_the_command_draws_walls(folder, browser, tmp_path, monkeypatch, libraries_as_they_were):
    own = scan()
    write_point_cloud(tmp_path / "room.ply", PointCloudData(own[:, :3], colors=own[:, 3:]))
    kind = "hf_any3d.processing.rooms.SpatialLMProcessor"
    monkeypatch.setattr(f"{kind}.answer_texts", lambda self, made: [ROOM.quantized(1280).write()] * len(made))
    monkeypatch.setattr("hf_any3d.pipelines.LayoutDetectionPipeline._default_generation_config.max_new_tokens", 3)
    words = ("detect", tmp_path / "room.ply", "--model", folder, "--device", "cpu", "--task", "all")
    code, _, err = run(*words, "--output", tmp_path / "room.html")
    assert code == 0, err
    browser.open(tmp_path / "room.html")
    # Boxes are drawn with numbers below -1, in the order of the answer: two walls, then the others.
    drawn = "return settled && !asked && panels[0].ids ? [...new Set(panels[0].ids)].filter(id => id < -1) : []"
    browser.wait(lambda: sorted(browser.driver.execute_script(drawn), reverse=True) == [-2, -3, -4, -5, -6])
    legend = [text.split("\n")[0] for text in browser.texts("aside li") if text]
    assert {"wall", "door", "chair", "bed"} <= set(legend)
    browser.all("aside li button")[legend.index("wall")].click()
    browser.wait(lambda: sorted(browser.driver.execute_script(drawn), reverse=True) == [-4, -5, -6])
    assert browser.errors() == []
