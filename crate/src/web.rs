//! The engine's face in a browser. `web/src/worker.ts` is its only caller.
//!
//! Every failure is a JavaScript `Error` with the properties `code` and `retryable`; nothing here panics on bad input.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;

use js_sys::{Function, Object, Promise, Reflect, Uint8Array};
use serde::Serialize;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

use crate::engine::{self, Engine, GenerateRequest};
use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::loading::{DeviceChoice, LoadOptions, Loading, PackFile};
use crate::model::layout::Part;
use crate::model::manifest::{Manifest, ShardInfo};
use crate::model::plan::{Bytes, MemoryPlan, Residency, TextWeights};
use crate::model::reader::ShardSource;
use crate::model::shards::verify_file;
use crate::selftest;
use crate::stage::{self, Stage};

unsafe extern "C" {
    /// Runs the static constructors of the module, by which the compiler of burn's kernels registers its operations.
    /// The linker makes it.
    fn __wasm_call_ctors();
}

/// Panics and the runtime's log lines go to the console: an engine bug must leave a trace.
#[wasm_bindgen(start)]
pub fn start() {
    // Where nothing calls the constructors, the linker makes every exported function begin with a call of all of them,
    // also those that the JavaScript glue calls for each object it passes. That took 13 ms for each kernel on a GPU.
    // SAFETY: they are called once, before anything else of the module.
    unsafe { __wasm_call_ctors() };
    console_error_panic_hook::set_once();
    let _ = log::set_logger(&ConsoleLog).map(|()| log::set_max_level(log::LevelFilter::Warn));
}

struct ConsoleLog;

impl log::Log for ConsoleLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = JsValue::from_str(&format!("{}: {}", record.target(), record.args()));
            if record.level() == log::Level::Error {
                web_sys::console::error_1(&line);
            } else {
                web_sys::console::warn_1(&line);
            }
        }
    }

    fn flush(&self) {}
}

fn thrown(error: Error) -> JsValue {
    let thrown = js_sys::Error::new(&error.to_string());
    // Setting a property of a fresh object cannot fail.
    let _ = Reflect::set(&thrown, &"code".into(), &error.code().into());
    let _ = Reflect::set(&thrown, &"retryable".into(), &error.retryable().into());
    thrown.into()
}

fn to_js(value: &impl Serialize) -> Result<JsValue, JsValue> {
    value
        .serialize(&serde_wasm_bindgen::Serializer::json_compatible())
        .map_err(|e| thrown(Error::Internal(format!("a result could not be handed to the page ({e})"))))
}

fn from_js<T: serde::de::DeserializeOwned>(value: JsValue, what: &str) -> Result<T, JsValue> {
    serde_wasm_bindgen::from_value(value)
        .map_err(|e| thrown(Error::InvalidRequest(format!("{what} is malformed ({e})"))))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateOptions {
    device: String,
    #[serde(default)]
    strict_limits: bool,
    #[serde(default)]
    text_encoder: TextWeights,
    #[serde(default)]
    prompt_pack_named: bool,
    /// Bytes; JavaScript has no other numbers.
    #[serde(default)]
    comfortable_memory: Option<f64>,
}

/// Shards that the page hands in when they are asked for.
struct PageShards(Function);

impl ShardSource for PageShards {
    fn read<'a>(&'a self, index: usize, info: &'a ShardInfo) -> Pin<Box<dyn Future<Output = Result<Vec<u8>>> + 'a>> {
        let failed = |thrown: JsValue| {
            let message = thrown.dyn_ref::<js_sys::Error>().map(|error| String::from(error.message()));
            let message = message.or(thrown.as_string()).unwrap_or_default();
            Error::InvalidRequest(format!("{} could not be read from storage ({message})", info.path))
        };
        Box::pin(async move {
            let promise = self.0.call1(&JsValue::UNDEFINED, &(index as u32).into()).map_err(failed)?;
            let bytes = JsFuture::from(Promise::resolve(&promise)).await.map_err(failed)?;
            let bytes: Uint8Array =
                bytes.dyn_into().map_err(|_| Error::InvalidRequest("readShard did not give a Uint8Array".into()))?;
            Ok(bytes.to_vec())
        })
    }
}

/// A property of the options that is no plain data; undefined if it is not there.
fn property(options: &JsValue, name: &str) -> JsValue {
    Reflect::get(options, &name.into()).unwrap_or(JsValue::UNDEFINED)
}

#[derive(Serialize)]
struct Info {
    device: &'static str,
    adapter: String,
    software: bool,
    engine: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    tokens: usize,
    unknown_words: Vec<String>,
    packed: bool,
    plan: Plan,
}

/// What a page shows of a memory plan, in bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Plan {
    width: u32,
    height: u32,
    frames: u32,
    download: Bytes,
    memory: Bytes,
    engine: Bytes,
    gpu: Bytes,
    largest_buffer: Bytes,
    residency: Residency,
}

impl Plan {
    fn of(plan: &MemoryPlan) -> Self {
        Self {
            width: plan.width,
            height: plan.height,
            frames: plan.frames,
            download: plan.download_bytes,
            memory: plan.in_page(),
            engine: plan.peak.host,
            gpu: plan.peak.gpu,
            largest_buffer: plan.largest_buffer,
            residency: plan.residency,
        }
    }
}

enum State {
    Loading(Box<Loading>),
    Ready(Rc<Engine>),
    /// Between the two, and for good if building the models failed.
    Failed,
}

/// Builds the models, or what there is of them in turns.
fn finish(state: &mut State) -> Result<(), JsValue> {
    if let State::Loading(loading) = std::mem::replace(state, State::Failed) {
        *state = State::Ready(Rc::new(loading.finish().map_err(thrown)?));
    }
    Ok(())
}

/// A model in a browser: created from its manifest, filled shard by shard, then ready.
#[wasm_bindgen(js_name = Engine)]
pub struct WebEngine {
    state: RefCell<State>,
    info: Info,
}

#[wasm_bindgen(js_class = Engine)]
impl WebEngine {
    /// `options`: `{device: "webgpu" | "cpu", textEncoder?: "resident" | "streamed" | "absent", strictLimits?: boolean,
    /// readShard?: (index: number) => Promise<Uint8Array>, promptPack?: Uint8Array, promptPackNamed?: boolean,
    /// comfortableMemory?: number, sweep?: () => void}`.
    /// A streamed encoder needs `readShard`, as do parts that take turns; an absent one needs no tokenizer.
    /// `promptPackNamed` says that the pack is the one that the manifest names. Clips that need more than
    /// `comfortableMemory` bytes are made with parts that take turns. `sweep` is called when GPU buffers have been let go
    /// of, to destroy them.
    pub async fn create(
        manifest_json: String,
        tokenizer_json: Option<String>,
        options: JsValue,
    ) -> Result<WebEngine, JsValue> {
        let sweep = property(&options, "sweep").dyn_into::<Function>().ok();
        let read_shard = property(&options, "readShard").dyn_into::<Function>();
        let pack = property(&options, "promptPack").dyn_into::<Uint8Array>().map(|bytes| bytes.to_vec()).ok();
        let options: CreateOptions = from_js(options, "options")?;
        let device = match options.device.as_str() {
            "cpu" => DeviceChoice::Cpu,
            "webgpu" => DeviceChoice::Gpu { strict_limits: options.strict_limits },
            other => {
                return Err(thrown(Error::InvalidRequest(format!("there is no device {other}, only webgpu and cpu"))));
            }
        };
        let options = LoadOptions {
            tokenizer: tokenizer_json.as_deref(),
            text: options.text_encoder,
            pack: pack.as_deref().map(if options.prompt_pack_named { PackFile::Named } else { PackFile::Given }),
            storage: read_shard.ok().map(|read| Rc::new(PageShards(read)) as Rc<dyn ShardSource>),
            memory: None,
            comfortable: options.comfortable_memory.map(|bytes| bytes as u64),
            sweep: sweep.map(|sweep| {
                Rc::new(move || {
                    // What was not destroyed now, a garbage collector will free.
                    let _ = sweep.call0(&JsValue::UNDEFINED);
                }) as Rc<dyn Fn()>
            }),
        };
        let loading = Loading::new(&manifest_json, device, options);
        let loading = loading.await.map_err(thrown)?;
        let compute = loading.compute();
        let info = Info {
            device: compute.name(),
            adapter: compute.adapter.clone(),
            software: compute.software,
            engine: env!("CARGO_PKG_VERSION"),
        };
        Ok(Self { state: RefCell::new(State::Loading(Box::new(loading))), info })
    }

    /// `{device, adapter, software, engine}`.
    #[wasm_bindgen(getter)]
    pub fn info(&self) -> Result<JsValue, JsValue> {
        to_js(&self.info)
    }

    /// Indices of the shards that have not been added, in order of first use.
    #[wasm_bindgen(js_name = missingShards)]
    pub fn missing_shards(&self) -> Vec<u32> {
        match &*self.state.borrow() {
            State::Loading(loading) => loading.missing_shards().into_iter().map(|index| index as u32).collect(),
            _ => Vec::new(),
        }
    }

    /// Verifies a shard (length and SHA-256), uploads its tensors and frees it.
    #[wasm_bindgen(js_name = addShard)]
    pub async fn add_shard(&self, index: u32, bytes: Vec<u8>) -> Result<(), JsValue> {
        let mut state = self.state.borrow_mut();
        let State::Loading(loading) = &mut *state else {
            return Err(thrown(Error::InvalidRequest("all shards have been added already".into())));
        };
        loading.add_shard(index as usize, bytes).map_err(thrown)?;
        if loading.missing_shards().is_empty() {
            finish(&mut state)?;
        }
        Ok(())
    }

    /// No shard is to be added any more: the parts of the model will be read from storage in turns, as the plan of
    /// [`check`](Self::check) says where memory is short. Nothing changes where the model has been loaded already.
    #[wasm_bindgen(js_name = takeTurns)]
    pub fn take_turns(&self) -> Result<(), JsValue> {
        let mut state = self.state.borrow_mut();
        if let State::Loading(loading) = &mut *state {
            loading.take_turns().map_err(thrown)?;
            finish(&mut state)?;
        }
        Ok(())
    }

    /// Indices of the shards that a streamed text encoder reads. Those that are not missing are not to be added: it is
    /// enough that `readShard` finds them.
    #[wasm_bindgen(js_name = textShards)]
    pub fn text_shards(&self) -> Result<Vec<u32>, JsValue> {
        self.shards_of(|part| part == Part::TextEncoder)
    }

    /// Indices of the shards that denoiser and decoder are read from where they take turns.
    #[wasm_bindgen(js_name = turnShards)]
    pub fn turn_shards(&self) -> Result<Vec<u32>, JsValue> {
        self.shards_of(|part| part != Part::TextEncoder)
    }

    fn shards_of(&self, wanted: impl Fn(Part) -> bool) -> Result<Vec<u32>, JsValue> {
        self.with_manifest(|manifest| {
            let shards = manifest.shards_of(|name| Part::of(name).is_some_and(&wanted));
            Ok(shards.into_iter().map(|index| index as u32).collect())
        })
    }

    /// Verifies a shard (length and SHA-256) that is kept for the streamed text encoder.
    #[wasm_bindgen(js_name = verifyShard)]
    pub fn verify_shard(&self, index: u32, bytes: &[u8]) -> Result<(), JsValue> {
        self.with_manifest(|manifest| match manifest.shards.get(index as usize) {
            Some(info) => verify_file(info, bytes),
            None => Err(Error::InvalidRequest(format!("there is no shard {index}"))),
        })
    }

    fn with_manifest<T>(&self, work: impl FnOnce(&Manifest) -> Result<T>) -> Result<T, JsValue> {
        let result = match &*self.state.borrow() {
            State::Loading(loading) => work(loading.manifest()),
            State::Ready(engine) => work(&engine.manifest),
            State::Failed => Err(Error::InvalidRequest("the model could not be built".into())),
        };
        result.map_err(thrown)
    }

    fn ready(&self) -> Result<Rc<Engine>, JsValue> {
        match &*self.state.borrow() {
            State::Ready(engine) => Ok(engine.clone()),
            _ => Err(thrown(Error::InvalidRequest("the model's shards have not all been added".into()))),
        }
    }

    /// Known-answer tests of the device: `{checks: [{name, error, tolerance}]}`.
    #[wasm_bindgen(js_name = selfTest)]
    pub async fn self_test(&self) -> Result<JsValue, JsValue> {
        #[derive(Serialize)]
        struct Report {
            checks: Vec<selftest::Check>,
        }
        let compute = match &*self.state.borrow() {
            State::Loading(loading) => loading.compute().clone(),
            State::Ready(engine) => engine.compute.clone(),
            State::Failed => return Err(thrown(Error::InvalidRequest("the model could not be built".into()))),
        };
        let checks = selftest::run(&compute).await.map_err(thrown)?;
        to_js(&Report { checks })
    }

    /// Checks a request without running it; works before the shards are there: `{tokens, unknownWords, packed, plan}`,
    /// where the plan says what the clip will need.
    pub fn check(&self, request: JsValue) -> Result<JsValue, JsValue> {
        let request: GenerateRequest = from_js(request, "the request")?;
        let checked = match &*self.state.borrow() {
            State::Loading(loading) => loading.check(&request),
            State::Ready(engine) => engine.check(&request),
            State::Failed => Err(Error::InvalidRequest("the model could not be built".into())),
        };
        let checked = checked.map_err(thrown)?;
        let engine::Checked { tokens, unknown_words, packed, ref plan, .. } = checked;
        to_js(&Checked { tokens, unknown_words, packed, plan: Plan::of(plan) })
    }

    /// Encodes the prompt and draws the noise.
    pub async fn begin(&self, request: JsValue) -> Result<WebGeneration, JsValue> {
        let request: GenerateRequest = from_js(request, "the request")?;
        let generation = self.ready()?.begin(&request).await.map_err(thrown)?;
        Ok(WebGeneration { inner: generation })
    }

    /// Puts a LoRA on the device and gives its number; `name` is for messages.
    #[wasm_bindgen(js_name = addLora)]
    pub fn add_lora(&self, name: String, safetensors: Vec<u8>) -> Result<u32, JsValue> {
        self.change(|engine| engine.add_lora(&name, &safetensors))
    }

    /// Clips begun from here on are made with exactly these LoRAs, `numbers[i]` at `strengths[i]`.
    #[wasm_bindgen(js_name = useLoras)]
    pub fn use_loras(&self, numbers: Vec<u32>, strengths: Vec<f32>) -> Result<(), JsValue> {
        if numbers.len() != strengths.len() {
            return Err(thrown(Error::InvalidRequest("every LoRA needs a strength".into())));
        }
        let loras: Vec<(u32, f32)> = numbers.into_iter().zip(strengths).collect();
        self.change(|engine| engine.use_loras(&loras))
    }

    /// Forgets a LoRA that is not in use.
    #[wasm_bindgen(js_name = removeLora)]
    pub fn remove_lora(&self, number: u32) -> Result<(), JsValue> {
        self.change(|engine| {
            engine.remove_lora(number);
            Ok(())
        })
    }

    /// Changes the engine while nothing is being made with it: a clip in the making counts on its weights.
    fn change<T>(&self, change: impl FnOnce(&mut Engine) -> Result<T>) -> Result<T, JsValue> {
        match &mut *self.state.borrow_mut() {
            State::Ready(engine) => match Rc::get_mut(engine) {
                Some(engine) => change(engine).map_err(thrown),
                None => Err(thrown(Error::InvalidRequest("a clip is being made, free it first".into()))),
            },
            _ => Err(thrown(Error::InvalidRequest("the model's shards have not all been added".into()))),
        }
    }

    /// One stage on a safetensors file, as `kinora stage`.
    #[wasm_bindgen(js_name = runStage)]
    pub async fn run_stage(&self, stage: String, safetensors: Vec<u8>) -> Result<Uint8Array, JsValue> {
        let engine = self.ready()?;
        let stage: Stage = stage.parse().map_err(thrown)?;
        let output = stage::run_stage(&engine, stage, &safetensors).await.map_err(thrown)?;
        Ok(Uint8Array::from(output.as_slice()))
    }
}

/// A clip in the making.
#[wasm_bindgen(js_name = Generation)]
pub struct WebGeneration {
    inner: Generation,
}

#[wasm_bindgen(js_class = Generation)]
impl WebGeneration {
    /// Pixels.
    #[wasm_bindgen(getter)]
    pub fn width(&self) -> u32 {
        self.inner.size().width
    }

    /// Pixels.
    #[wasm_bindgen(getter)]
    pub fn height(&self) -> u32 {
        self.inner.size().height
    }

    /// Frames in all.
    #[wasm_bindgen(getter)]
    pub fn frames(&self) -> u32 {
        self.inner.size().frames
    }

    /// Frames per second.
    #[wasm_bindgen(getter)]
    pub fn fps(&self) -> u32 {
        self.inner.fps()
    }

    /// Denoising steps in all.
    #[wasm_bindgen(getter)]
    pub fn steps(&self) -> u32 {
        self.inner.steps() as u32
    }

    /// Whether every frame has been given.
    #[wasm_bindgen(getter)]
    pub fn finished(&self) -> bool {
        self.inner.finished()
    }

    /// One denoising step: `{index, steps, sigma}`, or undefined once there are frames to fetch.
    pub async fn step(&mut self) -> Result<JsValue, JsValue> {
        match self.inner.step().await.map_err(thrown)? {
            Some(info) => to_js(&info),
            None => Ok(JsValue::UNDEFINED),
        }
    }

    /// "together" or "turns": whether the parts of the model are in memory at once.
    #[wasm_bindgen(getter)]
    pub fn residency(&self) -> Result<JsValue, JsValue> {
        to_js(&self.inner.residency())
    }

    /// RGBA of the middle frame as the last step expects it.
    pub async fn preview(&self) -> Result<Uint8Array, JsValue> {
        Ok(Uint8Array::from(self.inner.preview().await.map_err(thrown)?.as_slice()))
    }

    /// The frames of the next latent frame: `{first, count, rgba}`, or undefined when there are steps to do first, and
    /// at the end.
    #[wasm_bindgen(js_name = nextFrames)]
    pub async fn next_frames(&mut self) -> Result<JsValue, JsValue> {
        let Some(batch) = self.inner.next_frames().await.map_err(thrown)? else {
            return Ok(JsValue::UNDEFINED);
        };
        let object = Object::new();
        // Setting a property of a fresh object cannot fail.
        let _ = Reflect::set(&object, &"first".into(), &(batch.first as u32).into());
        let _ = Reflect::set(&object, &"count".into(), &(batch.count as u32).into());
        let _ = Reflect::set(&object, &"rgba".into(), &Uint8Array::from(batch.rgba.as_slice()));
        Ok(object.into())
    }
}
