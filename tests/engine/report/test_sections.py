"""report.sections: the command to train again, and links."""

from engine.report import sections


def test_the_command_to_train_again_is_a_shell_s_and_takes_another_folder():
    session = {"command": ["/x/python", "/x/engine/train.py", "preset=a b", "name=n", "resume=auto"], "world_size": 2}
    assert sections.again({**session, "folder": "/x y", "git": {"commit": "abc", "dirty": True}}, "n").splitlines() == [
        "cd '/x y'",
        "git checkout abc  # it had changes that are not committed",
        "torchrun --standalone --nproc_per_node 2 -m engine.train 'preset=a b' name=n-again",
    ]


def test_links_to_images_of_any_name(tmp_path):
    link = sections.link_to(tmp_path / "a b#?\udc80'\".jpg", tmp_path / "r" / "report.html")
    assert link == "../a%20b%23%3F%80%27%22.jpg"
