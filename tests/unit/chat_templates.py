"""Chat templates in the shape of the models people adapt, written here from the published formats, with what each does.

Every shape carries the same chat of two turns: what it must look like, and which of its text is scored, by hand.
"""

from dataclasses import dataclass

CHAT = [
    {"role": "user", "content": "Dov'è Torino?"},
    {"role": "assistant", "content": "In Piemonte."},
    {"role": "user", "content": "E Bari?"},
    {"role": "assistant", "content": "In Puglia."},
]
SYSTEM = {"role": "system", "content": "Sii chiaro."}


@dataclass(frozen=True)
class Shape:
    """A template with its special tokens.

    rendered, scored: the chat of two turns; scored is None where the template rewrites earlier turns.
    with_system: the beginning of the same chat after a system turn, up to the first question; None where refused.
    added: the system prompt that the template adds by itself.
    facts: of `inspect_template`, but for default_system and the id of the end of turn.
    """

    template: str
    marks: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    rendered: str
    scored: str | None
    with_system: str | None
    facts: dict
    added: str = ""
    prompt: str = ""  # how the generation prompt ends


def facts(bos, end_of_turn):
    return {"bos": bos, "end_of_turn": end_of_turn}


CHATML_TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
CHATML_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML_CHAT = (
    "<|im_start|>user\nDov'è Torino?<|im_end|>\n<|im_start|>assistant\nIn Piemonte.<|im_end|>\n"
    "<|im_start|>user\nE Bari?<|im_end|>\n<|im_start|>assistant\nIn Puglia.<|im_end|>\n"
)
CHATML_SYSTEM = "<|im_start|>system\nSii chiaro.<|im_end|>\n<|im_start|>user\n"
CHATML_SCORED = "In Piemonte.<|im_end|>In Puglia.<|im_end|>"


def chatml(default):
    return (
        f"{{% if messages[0].role != 'system' %}}{{{{ '{default}' }}}}{{% endif %}}"
        f"{{% for m in messages %}}{CHATML_TURN}{{% endfor %}}{CHATML_PROMPT}"
    )


SMOL_ADDED = "<|im_start|>system\nSei una piccola guida italiana, gentile e breve.<|im_end|>\n"
QWEN_ADDED = "<|im_start|>system\nSei Ginepro. Aiuti chi chiede.<|im_end|>\n"

QWEN3_TEMPLATE = """
{%- set ns = namespace(last=0) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- for m in messages %}
{%- set words = m.content.split('</think>')[-1].lstrip('\\n') if m.role == 'assistant' else m.content %}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in m.content else '' %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}
{{- words + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system role here') }}{% endif %}"
    "{% for m in messages %}" + ALTERNATE + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MISTRAL_BODY = (
    "{% for m in messages %}" + ALTERNATE + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# The system text into the first user turn
MERGED = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' + messages[1].content %}"
    "{% set messages = [{'role': 'user', 'content': first}] + messages[2:] %}{% endif %}"
)
MISTRAL_CHAT = "<s>[INST] Dov'è Torino? [/INST] In Piemonte.</s>[INST] E Bari? [/INST] In Puglia.</s>"
LLAMA2_TEMPLATE = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}" + ALTERNATE + "{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
PHI3_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
R1_TEMPLATE = (
    "{% set ns = namespace(system='') %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}"
    "{{ bos_token + ns.system }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)

SHAPES = {
    "SmolLM2": Shape(
        chatml(SMOL_ADDED.replace("\n", "\\n")),
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        bos="<|im_start|>",  # it opens every turn
        eos="<|im_end|>",
        pad="<|endoftext|>",
        rendered=SMOL_ADDED + CHATML_CHAT,
        scored=CHATML_SCORED,
        with_system=CHATML_SYSTEM,
        facts=facts("<|im_start|>", "<|im_end|>"),
        added=SMOL_ADDED,
        prompt="<|im_start|>assistant\n",
    ),
    "Qwen2.5": Shape(
        chatml(QWEN_ADDED.replace("\n", "\\n")),
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        rendered=QWEN_ADDED + CHATML_CHAT,
        scored=CHATML_SCORED,
        with_system=CHATML_SYSTEM,
        facts=facts(None, "<|im_end|>"),
        added=QWEN_ADDED,
        prompt="<|im_start|>assistant\n",
    ),
    "Qwen3": Shape(
        QWEN3_TEMPLATE,
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        rendered=CHATML_CHAT.replace("In Puglia", "<think>\n\n</think>\n\nIn Puglia"),
        scored=None,
        with_system=CHATML_SYSTEM,
        facts=facts(None, "<|im_end|>"),
        prompt="<|im_start|>assistant\n",
    ),
    "Gemma": Shape(
        GEMMA_TEMPLATE,
        ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        rendered="<bos><start_of_turn>user\nDov'è Torino?<end_of_turn>\n"
        "<start_of_turn>model\nIn Piemonte.<end_of_turn>\n"
        "<start_of_turn>user\nE Bari?<end_of_turn>\n<start_of_turn>model\nIn Puglia.<end_of_turn>\n",
        scored="In Piemonte.<end_of_turn>In Puglia.<end_of_turn>",
        with_system=None,
        facts=facts("<bos>", "<end_of_turn>"),
        prompt="<start_of_turn>model\n",
    ),
    "Mistral": Shape(
        "{{ bos_token }}" + MISTRAL_BODY,
        ("<s>", "</s>", "<unk>"),
        bos="<s>",
        eos="</s>",
        pad="<unk>",
        rendered=MISTRAL_CHAT,
        scored=" In Piemonte.</s> In Puglia.</s>",
        with_system=None,
        facts=facts("<s>", "</s>"),
        prompt=" [/INST]",
    ),
    "Mistral, merged": Shape(
        MERGED + "{{ bos_token }}" + MISTRAL_BODY,
        ("<s>", "</s>", "<unk>"),
        bos="<s>",
        eos="</s>",
        pad="<unk>",
        rendered=MISTRAL_CHAT,
        scored=" In Piemonte.</s> In Puglia.</s>",
        with_system="<s>[INST] Sii chiaro.\n\n",
        facts=facts("<s>", "</s>"),
        prompt=" [/INST]",
    ),
    "Llama 2": Shape(
        LLAMA2_TEMPLATE,
        ("<s>", "</s>", "<unk>"),
        bos="<s>",
        eos="</s>",
        pad="<unk>",
        rendered="<s>[INST] Dov'è Torino? [/INST] In Piemonte. </s><s>[INST] E Bari? [/INST] In Puglia. </s>",
        scored=" In Piemonte. </s> In Puglia. </s>",
        with_system="<s>[INST] <<SYS>>\nSii chiaro.\n<</SYS>>\n\n",
        facts=facts("<s>", "</s>"),
        prompt=" [/INST]",
    ),
    "Llama 3": Shape(
        LLAMA3_TEMPLATE,
        (),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|reserved_special_token_0|>",
        rendered="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nDov'è Torino?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIn Piemonte.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nE Bari?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIn Puglia.<|eot_id|>",
        scored="In Piemonte.<|eot_id|>In Puglia.<|eot_id|>",
        with_system="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nSii chiaro.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        facts=facts("<|begin_of_text|>", "<|eot_id|>"),
        prompt="<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "Phi-3": Shape(
        PHI3_TEMPLATE,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<unk>", "<s>"),
        bos="<s>",  # the tokenizer has one, the template writes none
        eos="<|endoftext|>",
        pad="<unk>",
        rendered="<|user|>\nDov'è Torino?<|end|>\n<|assistant|>\nIn Piemonte.<|end|>\n"
        "<|user|>\nE Bari?<|end|>\n<|assistant|>\nIn Puglia.<|end|>\n<|endoftext|>",
        scored="In Piemonte.<|end|>In Puglia.<|end|>",
        with_system="<|system|>\nSii chiaro.<|end|>\n<|user|>\n",
        facts=facts(None, "<|end|>"),
        prompt="<|assistant|>\n",
    ),
    "DeepSeek-R1": Shape(
        R1_TEMPLATE,
        ("<|begin|>", "<|finish|>", "<|pad|>", "<|User|>", "<|Assistant|>", "<think>", "</think>"),
        bos="<|begin|>",
        eos="<|finish|>",
        pad="<|pad|>",
        rendered="<|begin|><|User|>Dov'è Torino?<|Assistant|>In Piemonte.<|finish|>"
        "<|User|>E Bari?<|Assistant|>In Puglia.<|finish|>",
        scored="In Piemonte.<|finish|>In Puglia.<|finish|>",
        with_system="<|begin|>Sii chiaro.<|User|>",
        facts=facts("<|begin|>", "<|finish|>"),
        prompt="<|Assistant|><think>\n",
    ),
}


def carrier(shape, tokenizer):
    """The tokenizer, a copy for this alone, with the shape's template and special tokens."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(shape.marks)})
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = shape.bos, shape.eos, shape.pad
    tokenizer.chat_template = shape.template
    return tokenizer
