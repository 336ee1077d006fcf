"""Where tasks tell how far they are."""

from __future__ import annotations

from splitlab.core.studies.post import Post


def test_the_last_word_of_each_is_fetched_once() -> None:
    post = Post()
    assert not post.tell(1, 0.1, "step 1")
    assert not post.tell(1, 0.2, "step 2")
    assert not post.tell(2, 0.0, "begins")
    assert post.news(False) == {1: (0.2, "step 2"), 2: (0.0, "begins")}
    assert post.news(False) == {}


def test_who_tells_hears_whether_to_stop() -> None:
    post = Post()
    post.news(True)
    assert post.tell(1, 0.1, "step 1")
