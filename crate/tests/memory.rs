//! The memory plan against what is really taken, on the CPU: an upper bound in every stage, and not far above.
//!
//! A file of its own, because it counts every allocation of the program; and one test, because two would count each
//! other's.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::{TempDir, root, tiny_model};
use kinora::engine::{DeviceChoice, Engine, GenerateRequest, wait};
use kinora::model::manifest::{ClipSize, DType};
use kinora::model::plan::{MemoryPlan, PlanRequest, Residency, Target, TextWeights};
use kinora::pack::{PackOptions, read_file, read_manifest};
use serde_json::{Value, json};

/// The system's allocator, counted.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    PEAK.fetch_max(NOW.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: hands everything to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // As where a piece cannot grow in its place: both are there for a moment.
        add(size);
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes above `base` during some work.
fn most<T>(base: usize, work: impl FnOnce() -> T) -> (T, u64) {
    PEAK.store(NOW.load(Relaxed), Relaxed);
    let result = work();
    (result, PEAK.load(Relaxed).saturating_sub(base) as u64)
}

/// The tiny model with changes.
fn tiny(format: DType, change: impl FnOnce(&mut Value)) -> TempDir {
    tiny_model(&PackOptions { format, ..PackOptions::default() }, change)
}

fn offer(model: &mut Value, width: u32, height: u32, frames: u32) {
    model["video"]["sizes"] = json!([{"width": width, "height": height, "frames": [frames]}]);
}

/// Measures each stage of a clip by itself: the most that a stage took, by its name in the plan. `memory` is what there
/// is, where that is too little for the model as a whole.
fn measured(
    dir: &Path,
    text: TextWeights,
    memory: Option<u64>,
    request: &GenerateRequest,
) -> (usize, Vec<(&'static str, u64)>) {
    let base = NOW.load(Relaxed);
    let (engine, loading) = most(base, || match (text, memory) {
        (_, Some(memory)) => {
            // Beside the engine, a page looks at every shard before it keeps it.
            let shards = read_manifest(dir).expect("a manifest").shards;
            let longest = shards.iter().max_by_key(|shard| shard.bytes).expect("there are shards");
            let _shard = read_file(dir, longest).expect("the shard is right");
            Engine::load_dir_within(dir, DeviceChoice::Cpu, None, memory, request)
        }
        (TextWeights::Resident, None) => Engine::load_dir(dir, DeviceChoice::Cpu),
        _ => Engine::load_dir_streamed(dir, DeviceChoice::Cpu, None),
    });
    let engine = Rc::new(engine.expect("the model loads"));
    let held = NOW.load(Relaxed) - base;
    let (embeddings, encoding) = most(base, || wait(engine.embed(&request.prompt)).expect("embeddings"));
    let (generation, prompt) = most(base, || wait(engine.begin_with(&embeddings, request)).expect("a clip"));
    drop(embeddings);
    assert_eq!(generation.residency() == Residency::Turns, memory.is_some());
    let mut generation = generation;
    let (mut denoising, mut decoding) = (0, 0);
    while !generation.finished() {
        loop {
            let (step, bytes) = most(base, || wait(generation.step()).expect("a step"));
            if step.is_none() {
                break;
            }
            denoising = denoising.max(bytes);
            if generation.residency() == Residency::Turns {
                assert!(wait(generation.preview()).is_err(), "a preview needs two parts");
                continue;
            }
            let (_, bytes) = most(base, || wait(generation.preview()).expect("a preview"));
            decoding = decoding.max(bytes);
        }
        loop {
            let (batch, bytes) = most(base, || wait(generation.next_frames()).expect("frames"));
            match batch {
                Some(_) => decoding = decoding.max(bytes),
                None => {
                    // What a causal model does between chunks is a pass of its denoiser.
                    if !generation.finished() {
                        denoising = denoising.max(bytes);
                    }
                    break;
                }
            }
        }
    }
    let stages =
        [("load", loading), ("text", encoding), ("prompt", prompt), ("denoise", denoising), ("decode", decoding)];
    (held, stages.into())
}

/// The length of a causal clip is a matter of patience: four times the frames take the memory that the first ones took.
fn a_long_clip_takes_no_more(request: &GenerateRequest) {
    let model = tiny(DType::Q8, |model| {
        offer(model, 96, 64, 9);
        model["sampler"]["causal"] = json!({"chunk_frames": 2, "sink_frames": 1, "window_frames": 4});
    });
    let of = |frames: u32| {
        let request = GenerateRequest { frames: Some(frames), ..request.clone() };
        // The least of three: what threads hold at the same time depends on what else the machine does.
        let runs = (0..3).map(|_| measured(model.path(), TextWeights::Resident, None, &request).1);
        let least = |all: Vec<(&'static str, u64)>, run: Vec<(&'static str, u64)>| {
            all.into_iter().zip(run).map(|((stage, one), (_, other))| (stage, one.min(other))).collect()
        };
        runs.reduce(least).expect("three runs")
    };
    for ((stage, short), (_, long)) in of(49).into_iter().zip(of(197)) {
        println!("{stage}: {short} bytes for 49 frames, {long} for 197");
        assert!(long as f64 <= short as f64 * 1.01 + 4096.0, "{stage}: {short} bytes for 49 frames, {long} for 197");
    }
}

#[test]
fn the_plan_is_an_upper_bound_and_not_far_above() {
    const PROMPT: &str = "a red ball bounces on green grass";
    let builtin = root().join("model-shards");
    let meadow = |prompt: &str| GenerateRequest { prompt: prompt.into(), ..GenerateRequest::default() };
    // What the first use of anything keeps for good belongs to no clip: a wide one has products so large that gemm takes
    // the room that each thread keeps for them.
    let warm = tiny(DType::F32, |model| offer(model, 384, 256, 17));
    let request = GenerateRequest { width: Some(384), height: Some(256), frames: Some(17), ..meadow(PROMPT) };
    measured(warm.path(), TextWeights::Resident, None, &request);

    let small = tiny(DType::Q4, |model| offer(model, 96, 64, 9));
    let wide = tiny(DType::F32, |model| offer(model, 384, 256, 17));
    let long = tiny(DType::F16, |model| offer(model, 192, 160, 65));
    let guided = tiny(DType::Q8, |model| {
        offer(model, 256, 160, 13);
        model["sampler"]["guidance"] = json!(3.0);
        model["sampler"]["negative_prompt"] = json!("a white sea");
        model["sampler"]["step"] = json!("unipc");
    });
    let causal = |sink: usize, cache: &'static str| {
        tiny(DType::Q8, move |model| {
            offer(model, 256, 192, 41);
            let config = json!({"chunk_frames": 2, "sink_frames": sink, "window_frames": 4, "cache": cache});
            model["sampler"]["causal"] = config;
        })
    };
    let (rolling, anchored) = (causal(0, "f32"), causal(1, "f32"));
    let (halves, steps) = (causal(0, "f16"), causal(1, "q8"));
    use Residency::{Together, Turns};
    let cases = [
        ("small", small.path(), TextWeights::Resident, Together),
        ("wide", wide.path(), TextWeights::Resident, Together),
        ("long", long.path(), TextWeights::Resident, Together),
        ("guided, streamed text encoder", guided.path(), TextWeights::Streamed, Together),
        ("causal", rolling.path(), TextWeights::Resident, Together),
        ("causal with a sink", anchored.path(), TextWeights::Streamed, Together),
        ("causal, cache in f16", halves.path(), TextWeights::Resident, Together),
        ("causal with a sink, cache in q8", steps.path(), TextWeights::Resident, Together),
        ("built-in", &builtin, TextWeights::Resident, Together),
        ("built-in, streamed text encoder", &builtin, TextWeights::Streamed, Together),
        ("small, in turns", small.path(), TextWeights::Streamed, Turns),
        ("wide, in turns", wide.path(), TextWeights::Streamed, Turns),
        ("guided, in turns", guided.path(), TextWeights::Streamed, Turns),
        ("causal, in turns", rolling.path(), TextWeights::Streamed, Turns),
        ("built-in, in turns", &builtin, TextWeights::Streamed, Turns),
    ];
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut wrong = Vec::new();
    for (name, dir, text, residency) in cases {
        let manifest = read_manifest(dir).expect("a manifest");
        for size in manifest.sizes() {
            let ClipSize { width, height, frames } = size;
            let request =
                GenerateRequest { width: Some(width), height: Some(height), frames: Some(frames), ..meadow(PROMPT) };
            let target = Target::Cpu { threads };
            let plan = PlanRequest { size, tokens: Some(8), target, text, packed: false, lora_bytes: 0, residency };
            let plan = MemoryPlan::of(&manifest, &plan).expect("a plan");
            let memory = (residency == Turns).then_some(plan.total().get());
            let (held, stages) = measured(dir, text, memory, &request);
            let resident: u64 = plan.resident.iter().map(|item| item.bytes.host.get()).sum();
            println!("{name}: {size}, {threads} threads");
            let mut compare = |what: &str, planned: u64, taken: u64| {
                let ratio = planned as f64 / taken as f64;
                println!("  {what:<9} planned {planned:>12} measured {taken:>12} {ratio:.3}");
                if !(1.0..1.6).contains(&ratio) {
                    wrong.push(format!("{name}, {what}: planned {planned}, measured {taken}, {ratio:.3}"));
                }
            };
            compare("resident", resident, held as u64);
            for (stage, taken) in stages {
                // A part that is read in its turn is read in the call that needs it.
                let read = match stage {
                    "prompt" => "read denoiser",
                    "decode" => "read decoder",
                    _ => "",
                };
                let planned = plan.stages.iter().filter(|planned| planned.name == stage || planned.name == read);
                let planned = planned.map(|planned| planned.peak.host.get()).max().expect("the stage is planned");
                compare(stage, planned, taken);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    a_long_clip_takes_no_more(&meadow(PROMPT));
}
