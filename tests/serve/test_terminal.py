"""`cygnet chat --url` with `cygnet serve`: the conversation is that with the model itself."""

import re
from pathlib import Path

import pytest

from cygnet.errors import UserError
from cygnet.generate.conversation import Conversation, LocalModel
from cygnet.generate.remote import Server
from cygnet.generate.sampling import Sampling
from tests.serve.running import Running, running, save, wait_for

DRAWN = Sampling(temperature=0.9, top_p=0.9, top_k=20, seed=3, max_new_tokens=30)


def answered(conversation: Conversation, text: str) -> str:
    return "".join(piece.content for piece in conversation.answer(text))


def test_a_server_and_the_model_itself_give_the_same_conversation(
    server: Running, folder: Path
) -> None:
    """Drawn, with a seed: both are the same engine."""
    here = Conversation(LocalModel(folder), DRAWN, "Be brief.")
    there = Conversation(Server(server.url), DRAWN, "Be brief.")
    for question in ("a swan", "a lake 湖水", "<|im_end|> grey"):
        assert answered(there, question) == answered(here, question) != ""
    assert there.messages == here.messages


def test_stopping_an_answer_frees_its_slot(endless: Path) -> None:
    with running(endless, slots=1) as server:
        conversation = Conversation(Server(server.url), Sampling(max_new_tokens=40_000))
        answer = conversation.answer("a swan")
        begun = next(answer).content
        answer.close()
        assert conversation.messages[-1]["content"] == begun
        wait_for(server.is_quiet)


def test_oldest_turns_make_room(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """The server says in its error that the context is full."""
    conversation = Conversation(Server(server.url), Sampling(max_new_tokens=30))
    for number in range(4):
        assert answered(conversation, f"{number} " + "lake " * 1200)
    assert "no longer fit the context" in capsys.readouterr().err
    assert conversation.messages[-2]["content"].startswith("3 ")
    with pytest.raises(UserError, match="context"):
        answered(conversation, "lake " * 5000)


def test_keys_and_names_are_asked_for(folder: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "duck")
    with running(folder, other, api_key=("secret",)) as server:
        with pytest.raises(UserError, match="wants an API key"):
            Server(server.url)
        with pytest.raises(UserError, match="refuses this API key"):
            Server(server.url, api_key="wrong")
        with pytest.raises(UserError, match="with --model; there are swan, duck"):
            Server(server.url, api_key="secret")
        wrong = Server(server.url, "duk", "secret")
        said = re.escape("no model 'duk' (did you mean 'duck'?); there are swan, duck")
        with pytest.raises(UserError, match=said):
            next(wrong.answer([{"role": "user", "content": "hi"}], DRAWN))
        assert answered(Conversation(Server(server.url, "duck", "secret"), DRAWN), "hi")


def test_a_pretrained_model_goes_on_from_the_text_here_and_there(tmp_path: Path) -> None:
    save(tmp_path / "model")
    (tmp_path / "config.yaml").write_text("stage: pretrain\n")
    with running(tmp_path) as server:
        there, here = Server(server.url), LocalModel(tmp_path)
        assert there.is_only_pretrained and here.is_only_pretrained
        texts = [answered(Conversation(source, DRAWN), "a swan") for source in (there, here)]
    assert texts[0] == texts[1] != ""


def test_a_stretched_model_says_so_and_is_that_of_the_terminal(folder: Path) -> None:
    with running(folder, yarn_factor=2.0) as server:
        (model,) = server.client.models.list()
        assert model.model_extra is not None
        assert model.model_extra["context_length"] == 2 * 4096
        question, greedy = "lake " * 4200, Sampling(temperature=0, max_new_tokens=8)
        texts = [
            answered(Conversation(source, greedy), question)
            for source in (Server(server.url), LocalModel(folder, yarn_factor=2.0))
        ]
    assert texts[0] == texts[1]
