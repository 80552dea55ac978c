"""The Modelfile that makes a GGUF file a model of Ollama.

Ollama renders conversations with a Go template of its own, not with the model's Jinja; this one
writes what `cygnet/text/chat_template.jinja` writes for messages. Go templates cannot trim text,
so an assistant's earlier answer that begins or ends with spaces keeps them.
"""

from __future__ import annotations

import json

from cygnet.config import ModelConfig
from cygnet.errors import UserError
from cygnet.text.tokenizer import END_OF_DOCUMENT, IM_END, Tokenizer, default_chat_template

TEMPLATE = """\
{{- $last := -1 }}
{{- range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ $last = $i }}{{ end }}{{ end }}
{{- if or .System .Tools }}<|im_start|>system
{{ .System }}
{{- if .Tools }}
{{- if .System }}

{{ end }}# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{{- range .Tools }}
{{ . }}
{{- end }}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>
{{- end }}<|im_end|>
{{ end }}
{{- range $i, $m := .Messages }}
{{- if eq $m.Role "user" }}<|im_start|>user
{{ $m.Content }}<|im_end|>
{{ else if eq $m.Role "assistant" }}<|im_start|>assistant
{{ if and $m.Thinking (gt $i $last) }}<think>
{{ $m.Thinking }}
</think>

{{ end }}{{ $m.Content }}
{{- range $j, $call := $m.ToolCalls }}
{{- if or $m.Content $j }}
{{ end }}<tool_call>
{"name": "{{ $call.Function.Name }}", "arguments": {{ $call.Function.Arguments }}}
</tool_call>
{{- end }}<|im_end|>
{{ else if eq $m.Role "tool" }}<|im_start|>user
<tool_response>
{{ $m.Content }}
</tool_response><|im_end|>
{{ end }}
{{- end }}<|im_start|>assistant
"""


def modelfile(gguf_name: str, tokenizer: Tokenizer, config: ModelConfig) -> str:
    """Return the Modelfile for a GGUF file beside it.

    Raises:
        UserError: the model speaks another template than ours, which is not written in Go here.
    """
    if tokenizer.chat_template != default_chat_template():
        raise UserError(
            "ollama: this model has a chat template of its own, and Ollama's templates are in Go, "
            "not Jinja; export --to gguf, and write its Modelfile by hand"
        )
    parameters = {
        "num_ctx": config.max_position, "temperature": 0.8, "top_p": 0.95, "top_k": 0,
        "min_p": 0.0, "repeat_penalty": 1.0,
    }  # fmt: skip
    lines = [
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{TEMPLATE}"""',
        *(f"PARAMETER {name} {value}" for name, value in parameters.items()),
        *(f"PARAMETER stop {json.dumps(stop)}" for stop in (IM_END, END_OF_DOCUMENT)),
    ]
    return "\n".join(lines) + "\n"
