"""Miniature speech corpora, synthesised with espeak-ng in the layouts of public corpora.

`english`, `mandarin` and `sentences` generate the text, `accents` and `speakers` the voices. `plan`
assigns sentences to speakers, `espeak` synthesises them, `acoustics` adds room, noise and
microphone, `reading` and `dialogue` make the recordings, and `render` runs that on several cores.
One module per corpus (`librispeech`, `aishell1`, ...) writes the layout. The command is
`tools/make_mini_corpus.py`.
"""
