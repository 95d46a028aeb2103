"""Read a model into memory: the demo, a local folder or a hub id; a data type that gives finite numbers.

May read the model's files, and the network through huggingface_hub. Every step back (a data type that failed) is an
event; nothing of the model is removed or replaced. The library's own implementation of an architecture is taken wherever
it has one; a repository's Python code runs only with `trust_remote_code`, which nothing ever asks for at run time.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bruno.engine.edits.session import EditSession
from bruno.engine.events import Emit, Fallback, ModelLoaded
from bruno.engine.model.architectures import Writer, decoder_config, find_writers
from bruno.engine.model.chat_format import pad_token
from bruno.engine.model.checkpoint import stored_routers, stored_writers
from bruno.engine.model.devices import device_map, devices_for
from bruno.engine.model.fusing import fuse
from bruno.engine.model.lean import Lean
from bruno.engine.model.memory import is_out_of_memory
from bruno.engine.model.precision import (
    element_size,
    quantization_config,
    say_what_stays,
    settle_quantised,
    stored_dtype,
)
from bruno.engine.model.probes import padding_is_harmless, why_not_finite
from bruno.engine.model.workspace import Workspace
from bruno.errors import BrunoError, InputError, first_line
from bruno.settings.engine import EngineSettings
from bruno.settings.paths import paths

# Everything a model folder may hold but weights in other formats (original/, *.bin beside safetensors, ONNX, GGUF ...).
_SKIPPED_FILES = ["*.bin", "*.pth", "*.pt", "*.onnx", "*.gguf", "*.h5", "*.msgpack", "original/*", "*.ckpt"]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be searched.

    Attributes:
        model: in evaluation mode, no gradients.
        tokenizer: pads on the left, always has a pad token.
        device: where inputs go (of several devices, the one with the embeddings).
        dtype: the data type that loaded and gave finite logits.
        source: local folder with the original files; export copies from it.
        name: what was asked for (hub id, folder, or "demo").
        family: model_type of the decoder's config, e.g. "llama"; warm starts are keyed by it.
        writers: from `architectures.find_writers`.
        layers: number of decoder blocks L.
        hidden_size: d.
        default_rows: prompts in one pass where nobody says otherwise.
        pads: whether shorter rows may be padded on the left. False for a model whose answers depend on padding: its
            batches hold prompts of one length.
        lean: its blocks with half the launches, where there are such (on a GPU).
        workspace: what writing answers on a GPU keeps between batches of trials.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    source: Path
    name: str
    family: str
    writers: list[Writer]
    layers: int
    hidden_size: int
    default_rows: int
    pads: bool = True
    lean: Lean | None = field(default=None, compare=False, repr=False)
    workspace: Workspace = field(default_factory=Workspace, compare=False, repr=False)

    def running(self, session: EditSession | None) -> AbstractContextManager[None]:
        """Passes of the search are made in this: by lean blocks where there are any, with the session's edits."""
        return nullcontext() if self.lean is None else self.lean.on(session)


def load(settings: EngineSettings, emit: Emit) -> LoadedModel:
    """Load `settings.model` as `settings.loading` says.

    Raises:
        InputError: no such model, gated, offline, custom code without `trust_remote_code`, no such device; says which
            and what to do; or files that `export` could not edit.
        UnsupportedModel: the architecture cannot be edited whole.
        BrunoError: no data type gave finite logits.
    """
    started = time.monotonic()
    if settings.loading.threads:
        torch.set_num_threads(settings.loading.threads)
    devices = devices_for(settings.loading.device)
    source = locate(settings)
    code = _needs_own_code(source, settings)
    config = _config(source, settings, own_code=code)
    tokenizer = _tokenizer(source, settings, config)
    model = _model(source, settings, config, devices, emit, own_code=code)
    pads = padding_is_harmless(model, emit)
    writers = find_writers(model)
    lean = fuse(model, writers, emit)
    if settings.export.save:
        stored_writers(source, writers)  # raises now what would otherwise end the search with nothing to show
        if settings.edit.router:
            stored_routers(source, writers)
    config = decoder_config(model)
    emit(
        ModelLoaded(
            model=settings.model,
            family=config.model_type,
            layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            dtype=str(model.dtype).removeprefix("torch."),
            device=", ".join(sorted({str(parameter.device) for parameter in model.parameters()})),
            seconds=time.monotonic() - started,
        )
    )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=model.device,
        dtype=model.dtype,
        source=source,
        name=settings.model,
        family=config.model_type,
        writers=writers,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        default_rows=settings.loading.batch_size or (32 if model.device.type == "cpu" else 128),
        pads=pads,
        lean=lean,
    )


def locate(settings: EngineSettings) -> Path:
    """The local folder with the model's files: given, made (the demo), or downloaded from the hub.

    Raises:
        InputError: it is not there, and why.
    """
    name = settings.model
    if not name:
        raise InputError("No model was named", fix="Say --model with a hub id, a folder, or demo")
    if name == "demo":
        from bruno.engine.demo import materialise  # its GGUF reader is only needed here

        return materialise(paths().cache / "demo")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds no model: it has no config.json", fix="Name the folder that has one")
        return folder.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(
            f"There is no model folder {name}", fix="Give an existing folder, or a hub id such as owner/name"
        )
    try:
        return Path(snapshot_download(name, revision=settings.revision or None, ignore_patterns=_SKIPPED_FILES))
    except hub_errors.GatedRepoError as error:
        raise InputError(
            f"{name} is gated on the hub",
            fix="Accept its terms on its page, and set HF_TOKEN to a token that may read it",
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise InputError(
            f"{name} has no revision {settings.revision}", fix="Leave revision empty for the default"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise InputError(f"The hub has no model {name}", fix="Check the name; private ones need HF_TOKEN") from error
    except hub_errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{name} is not on this machine and the hub cannot be reached", fix="Connect, or give a local folder"
        ) from error
    except (hub_errors.HfHubHTTPError, hub_errors.HFValidationError, OSError) as error:
        raise InputError(f"{name} could not be downloaded: {first_line(error)}") from error


def _needs_own_code(source: Path, settings: EngineSettings) -> bool:
    """Whether the model's architecture is only known to Python code in its repository.

    Raises:
        InputError: config.json cannot be read, or that code may not run.
    """
    try:
        stored = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The config.json of {settings.model} cannot be read: {first_line(error)}") from error
    if stored.get("model_type") in CONFIG_MAPPING or "auto_map" not in stored:
        return False
    if not settings.trust_remote_code:
        raise _code_needed("model", settings)
    return True


def _config(source: Path, settings: EngineSettings, *, own_code: bool):
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=own_code)
    except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
        raise _unloadable("configuration", settings, error) from error


def _tokenizer(source: Path, settings: EngineSettings, config) -> PreTrainedTokenizerBase:
    own_code = _tokenizer_needs_own_code(source)
    if own_code and not settings.trust_remote_code:
        raise _code_needed("tokenizer", settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, config=config, trust_remote_code=own_code)
    except (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise _unloadable("tokenizer", settings, error) from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token(tokenizer))
    return tokenizer


def _tokenizer_needs_own_code(source: Path) -> bool:
    """Whether only the repository's code knows the tokenizer (as Moonlight's tiktoken one): there is no tokenizer.json,
    and the library's class for the architecture would read other files, or none."""
    path = source / "tokenizer_config.json"
    if (source / "tokenizer.json").is_file() or not path.is_file():
        return False
    mapped = json.loads(path.read_text(encoding="utf-8")).get("auto_map", {})
    return bool(mapped.get("AutoTokenizer") if isinstance(mapped, dict) else mapped)


def _code_needed(part: str, settings: EngineSettings) -> InputError:
    return InputError(
        f"The {part} of {settings.model} needs the repository's own Python code",
        fix="Read that code, then say --trust-remote-code",
    )


def _unloadable(part: str, settings: EngineSettings, error: Exception) -> InputError:
    if "trust_remote_code" in str(error):
        return _code_needed(part, settings)
    return InputError(f"The {part} of {settings.model} cannot be loaded: {first_line(error)}")


def _model(
    source: Path, settings: EngineSettings, config, devices: list[torch.device], emit: Emit, *, own_code: bool
) -> PreTrainedModel:
    """The first data type of `loading.dtype` that loads and gives finite logits."""
    stored = stored_dtype(source, config)
    names = dict.fromkeys(_resolve(name, stored, devices[0]) for name in settings.loading.dtype)
    reason = "no data type was given"
    for position, name in enumerate(names):
        try:
            model = _read(source, settings, config, devices, getattr(torch, name), emit, own_code=own_code)
            reason = why_not_finite(model)
        except (OSError, ImportError, KeyError) as error:
            raise _unloadable("weights", settings, error) from error
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise BrunoError(
                    f"Memory does not hold {settings.model} in {name}",
                    fix="Choose a larger GPU or --loading.quantization nf4",
                ) from error
            if "trust_remote_code" in str(error):
                raise _unloadable("weights", settings, error) from error
            reason = first_line(error)
        if not reason:
            return model
        following = list(names)[position + 1 :]
        if following:
            emit(Fallback(method=f"data type {name}", reason=reason, instead=following[0]))
    raise BrunoError(f"{settings.model} does not run in {', '.join(names)}: {reason}")


def _resolve(name: str, stored: str, device: torch.device) -> str:
    """The torch name of a data type; "auto" is the checkpoint's own, or fp32 on a CPU that would only emulate it."""
    if name != "auto":
        return name
    if device.type == "cpu" and stored != "float32":
        able = torch.cpu.get_capabilities()
        native = stored == "bfloat16" and (able.get("amx_bf16") or able.get("avx512_bf16"))
        return stored if native else "float32"
    return stored


def _read(
    source: Path,
    settings: EngineSettings,
    config,
    devices: list[torch.device],
    dtype: torch.dtype,
    emit: Emit,
    *,
    own_code: bool,
) -> PreTrainedModel:
    loading = settings.loading
    auto = AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and (
        getattr(config, "vision_config", None) is not None or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        auto = AutoModelForImageTextToText
    arguments: dict = {"dtype": dtype, "trust_remote_code": own_code, "use_safetensors": True, "config": config}
    quantization = quantization_config(loading, config, dtype, emit)
    if quantization is not None:
        arguments["quantization_config"] = quantization
    if len(devices) > 1 or loading.quantization != "none":
        with torch.device("meta"):
            outline = auto.from_config(config, trust_remote_code=own_code)
        say_what_stays(outline, loading, emit)
        arguments["device_map"] = device_map(
            outline, devices, lambda name, each: each.numel() * element_size(name, each, outline, loading, dtype)
        )
    else:
        arguments["device_map"] = {"": devices[0]}
    model = auto.from_pretrained(source, **arguments)
    if loading.quantization != "none":
        settle_quantised(model)
    return model.eval().requires_grad_(False)
