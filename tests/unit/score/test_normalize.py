from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrtool.score.normalize import NORMALIZERS, normalizer, splitter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MISTER Quilter", "mister quilter"),
        ("Well, I don't -- know!", "well i don't know"),
        ("don’t", "don't"),
        ("‘tis", "'tis"),
        ("hel\u200blo\u200e wor\u00adld\ufeff", "hello world"),
        ("ok\ufe0f \u2068name\u2069", "ok name"),
        ("a\u200db <unk> c\u2060d", "ab <unk> cd"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("the boys' 'tis", "the boys' 'tis"),
        ("a ' b", "a b"),
        ("twenty-one  U.S.", "twenty one u s"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("cafe\u0301", "café"),
        ("it is <unk> here", "it is <unk> here"),
        ("3 < 5 > 2", "3 5 2"),
        ("!?", ""),
    ],
)
def test_english(text, expected):
    assert normalizer("en")(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好，世界。", "你好世界"),
        ("你 好 世 界", "你好世界"),
        ("我 用 ｉＰｈｏｎｅ 打 电话", "我用iphone打电话"),
        ("play ‘music’ 好 don’t stop", "play music好don't stop"),
        ("hello world", "hello world"),
        ("你\u200b好\ufe00世\u00ad界", "你好世界"),
        ("２０２４年", "2024年"),
        ("他 <unk> 说", "他<unk>说"),
        ("。", ""),
    ],
)
def test_mandarin(text, expected):
    assert normalizer("zh")(text) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("zh-aishell2", "赵孟\U0002b5af 和\U0002b689 (ＡＴＭ)，O-K I'M", "赵孟頫和atm o k i'm"),
        ("zh-kespeech", "你 <SPOKEN_NOISE>好<SPOKEN_NOISE>", "你好"),
        ("zh-magicdata", "[LAUGHTER]对，[+]我[++]说[ENS] OK [FIL]FIL 好SPK", "对我说ok好"),
        ("zh-magicdata", "FILM 和 [二]", "film和二"),
    ],
)
def test_what_a_corpus_writes_in_its_own_way(name, text, expected):
    assert normalizer(name)(text) == expected
    assert normalizer(name)(expected) == expected


def test_none_changes_nothing():
    assert normalizer("none")(" A,  ｂ！") == " A,  ｂ！"


@pytest.mark.parametrize("name", ["en", "zh"])
@given(text=st.text(alphabet=st.sampled_from("aB'’，,-< >/好的　é１")))
def test_normalising_twice_changes_nothing_more(name, text):
    normalize = NORMALIZERS[name]
    assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    ("metric", "text", "expected"),
    [
        ("wer", "a\tb　c  d", ["a", "b", "c", "d"]),
        ("cer", "你好 ab", ["你", "好", "a", "b"]),
        ("cer", "你<unk>好", ["你", "<unk>", "好"]),
        ("cer", "1<2", ["1", "<", "2"]),
        ("mer", "我用iphone打 a call", ["我", "用", "iphone", "打", "a", "call"]),
        ("mer", "好<unk>x<y", ["好", "<unk>", "x", "<", "y"]),
        ("mer", "2024年 𠀀々〇", ["2024", "年", "𠀀", "々", "〇"]),
        ("mer", "", []),
    ],
)
def test_tokens_of_a_metric(metric, text, expected):
    assert splitter(metric)(text) == expected


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown normalizer 'english' .*none, en, zh, zh-aishell2"
    ):
        normalizer("english")
    with pytest.raises(ValueError, match="unknown metric 'ter' .*wer, cer, mer"):
        splitter("ter")
