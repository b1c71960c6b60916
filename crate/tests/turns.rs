//! Parts of a model that take turns where memory is short: the same clips, and nothing lost when storage fails.

mod common;
mod loras;
mod writers;

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;

use common::{TempDir, strict, tiny_model};
use kinora::engine::{DeviceChoice, Engine, GenerateRequest, LoadOptions, Loading, wait};
use kinora::error::{Error, Result};
use kinora::model::layout::Part;
use kinora::model::manifest::{DType, Manifest, ShardInfo};
use kinora::model::plan::{Limits, MemoryPlan, PlanRequest, Residency, Target, TextWeights};
use kinora::model::reader::{ShardFolder, ShardSource};
use kinora::pack::{MANIFEST_FILE, PackOptions, read_manifest};
use serde_json::{Value, json};

const PROMPT: &str = "a red ball bounces on green grass";

fn tiny(format: DType, change: impl FnOnce(&mut Value)) -> TempDir {
    tiny_model(&PackOptions { format, shard_bytes: 100_000, ..PackOptions::default() }, change)
}

/// Three tiny models: one that makes clips at once, one with guidance, one that makes them chunk by chunk.
fn models() -> [(&'static str, TempDir); 3] {
    [
        ("at once", tiny(DType::Q4, |_| ())),
        (
            "guided",
            tiny(DType::F16, |model| {
                model["sampler"]["guidance"] = json!(3.0);
                model["sampler"]["negative_prompt"] = json!("a white sea");
            }),
        ),
        (
            "causal",
            tiny(DType::Q8, |model| {
                model["video"]["sizes"] = json!([{"width": 96, "height": 64, "frames": [17]}]);
                model["sampler"]["causal"] = json!({"chunk_frames": 2, "sink_frames": 1, "window_frames": 2});
            }),
        ),
    ]
}

fn request() -> GenerateRequest {
    GenerateRequest { prompt: PROMPT.into(), seed: 11, ..GenerateRequest::default() }
}

/// All frames of a clip, and how the parts were there.
fn clip(engine: &Rc<Engine>, request: &GenerateRequest) -> Result<(Vec<u8>, Residency)> {
    let mut generation = wait(engine.begin(request))?;
    let mut pixels = Vec::new();
    while !generation.finished() {
        while wait(generation.step())?.is_some() {}
        while let Some(batch) = wait(generation.next_frames())? {
            pixels.extend(batch.rgba);
        }
    }
    Ok((pixels, generation.residency()))
}

/// What the first clip of a model takes.
fn plan(manifest: &Manifest, residency: Residency) -> MemoryPlan {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let (size, target, text) = (manifest.default_size(), Target::Cpu { threads }, TextWeights::Streamed);
    let request = PlanRequest { size, tokens: Some(8), target, text, packed: false, lora_bytes: 0, residency };
    MemoryPlan::of(manifest, &request).expect("a plan")
}

fn within(dir: &TempDir, device: DeviceChoice, memory: u64) -> Result<Rc<Engine>> {
    Engine::load_dir_within(dir.path(), device, None, memory, &request()).map(Rc::new)
}

#[test]
fn clips_are_the_same_in_turns_bit_for_bit() {
    for (name, dir) in models() {
        let manifest = read_manifest(dir.path()).expect("a manifest");
        let together = Rc::new(Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("loads"));
        let (want, how) = clip(&together, &request()).expect("a clip");
        assert_eq!(how, Residency::Together);
        let memory = plan(&manifest, Residency::Turns).total().get();
        let engine = within(&dir, DeviceChoice::Cpu, memory).expect("loads");
        let mut other = GenerateRequest { prompt: "the blue bird".into(), ..request() };
        for _ in 0..2 {
            let (found, how) = clip(&engine, &request()).expect("a clip");
            assert_eq!(how, Residency::Turns, "{name}");
            assert!(found == want, "{name}: another clip");
            // The decoder is there now, the denoiser and a text encoder are not.
            assert!(clip(&engine, &other).expect("a clip").0 != want, "{name}: another prompt gives the same clip");
            other.seed += 1;
        }
    }
}

#[test]
fn parts_take_turns_exactly_where_memory_is_short() {
    let (_, dir) = &models()[0];
    let manifest = read_manifest(dir.path()).expect("a manifest");
    let [together, turns] = [Residency::Together, Residency::Turns].map(|how| plan(&manifest, how).total().get());
    assert!(turns < together);
    let how = |memory: u64| within(dir, DeviceChoice::Cpu, memory).map(|engine| clip(&engine, &request()).unwrap().1);
    assert_eq!(how(together), Ok(Residency::Together));
    assert_eq!(how(together - 1), Ok(Residency::Turns));
    assert_eq!(how(turns), Ok(Residency::Turns));
    let error = how(turns - 1).expect_err("too little for anything");
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");

    // What is merely uncomfortable refuses nothing.
    let asked = PlanRequest {
        size: manifest.default_size(),
        tokens: Some(8),
        target: Target::Gpu,
        text: TextWeights::Resident,
        packed: false,
        lora_bytes: 0,
        residency: Residency::Together,
    };
    let within = |limits: &Limits| MemoryPlan::within(&manifest, &asked, limits).map(|plan| plan.residency);
    let uncomfortable = Limits { comfortable: Some(1), turns: true, ..Limits::default() };
    assert_eq!(within(&uncomfortable), Ok(Residency::Turns));
    assert_eq!(within(&Limits { comfortable: Some(1 << 40), ..uncomfortable }), Ok(Residency::Together));
    assert_eq!(within(&Limits { turns: false, ..uncomfortable }), Ok(Residency::Together), "nothing is stored");
    let buffer = Limits { buffer: Some(1000), ..uncomfortable };
    assert!(within(&buffer).is_err(), "turns make no buffer shorter");
}

/// Shards of a folder, counted, and one of them can be lost.
struct Counted {
    folder: ShardFolder,
    reads: Rc<RefCell<Vec<usize>>>,
}

impl ShardSource for Counted {
    fn read<'a>(&'a self, index: usize, info: &'a ShardInfo) -> Pin<Box<dyn Future<Output = Result<Vec<u8>>> + 'a>> {
        self.reads.borrow_mut().push(index);
        self.folder.read(index, info)
    }
}

/// The model loaded as a whole, as a page loads it, with storage beside it; the shards that were read from there later.
fn loaded(dir: &Path, comfortable: u64) -> (Rc<Engine>, Rc<RefCell<Vec<usize>>>) {
    let read = |name: &str| fs::read_to_string(dir.join(name)).expect("the file is there");
    let (text, tokenizer) = (read(MANIFEST_FILE), read("tokenizer.json"));
    let reads = Rc::new(RefCell::new(Vec::new()));
    let storage = Counted { folder: ShardFolder(dir.into()), reads: reads.clone() };
    let options = LoadOptions {
        storage: Some(Rc::new(storage)),
        comfortable: Some(comfortable),
        ..LoadOptions::resident(&tokenizer)
    };
    let mut loading = wait(Loading::new(&text, DeviceChoice::Cpu, options)).expect("opens");
    for index in loading.missing_shards() {
        let path = dir.join(&loading.manifest().shards[index].path);
        loading.add_shard(index, fs::read(path).expect("the shard is there")).expect("the shard is right");
    }
    (Rc::new(loading.finish().expect("loads")), reads)
}

#[test]
fn a_model_that_was_loaded_as_a_whole_takes_turns_for_a_clip_that_needs_it() {
    let sizes = json!([{"width": 48, "height": 32, "frames": [5]}, {"width": 384, "height": 256, "frames": [17]}]);
    let dir = tiny(DType::Q8, |model| model["video"]["sizes"] = sizes);
    let (engine, reads) = loaded(dir.path(), 6 << 20);
    let small = request();
    let large = GenerateRequest { width: Some(384), height: Some(256), frames: Some(17), ..request() };
    let reference = Rc::new(Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("loads"));
    let want = [&small, &large].map(|request| clip(&reference, request).expect("a clip").0);

    assert!(clip(&engine, &small) == Ok((want[0].clone(), Residency::Together)));
    assert!(reads.borrow().is_empty(), "everything is there");
    assert!(clip(&engine, &large) == Ok((want[1].clone(), Residency::Turns)));
    let manifest = read_manifest(dir.path()).expect("a manifest");
    let of = |part: Part| manifest.shards_of(|name| Part::of(name) == Some(part));
    for part in [Part::TextEncoder, Part::Transformer, Part::Decoder] {
        assert!(of(part).iter().all(|index| reads.borrow().contains(index)), "the {part} was not read again");
    }
    // Back to a clip that fits: what is missing is read once, and stays.
    assert!(clip(&engine, &small) == Ok((want[0].clone(), Residency::Together)));
    reads.borrow_mut().clear();
    assert!(clip(&engine, &small) == Ok((want[0].clone(), Residency::Together)));
    let text = of(Part::TextEncoder);
    assert!(reads.borrow().iter().all(|index| text.contains(index)), "only the text encoder stays in storage");
}

/// Files of a folder's shards, by part.
fn files(dir: &Path, part: Part) -> Vec<PathBuf> {
    let manifest = read_manifest(dir).expect("a manifest");
    let shards = manifest.shards_of(|name| Part::of(name) == Some(part));
    shards.iter().map(|&index| dir.join(&manifest.shards[index].path)).collect()
}

#[test]
fn a_shard_that_is_lost_between_two_turns_ends_in_an_error_and_costs_no_step() {
    let (_, dir) = &models()[0];
    let manifest = read_manifest(dir.path()).expect("a manifest");
    let together = Rc::new(Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("loads"));
    let (want, _) = clip(&together, &request()).expect("a clip");
    let memory = plan(&manifest, Residency::Turns).total().get();
    let engine = within(dir, DeviceChoice::Cpu, memory).expect("loads");

    let mut generation = wait(engine.begin(&request())).expect("begins");
    while wait(generation.step()).expect("a step").is_some() {}
    let last = files(dir.path(), Part::Decoder).pop().expect("a shard of the decoder");
    let whole = fs::read(&last).expect("the shard is there");
    fs::remove_file(&last).expect("it goes");
    let error = wait(generation.next_frames()).expect_err("the decoder is gone");
    assert!(error.to_string().contains("cannot be read"), "{error}");
    fs::write(&last, [&whole[..whole.len() - 1], &[whole[whole.len() - 1] ^ 1]].concat()).expect("writes");
    let error = wait(generation.next_frames()).expect_err("the decoder is another");
    assert!(matches!(error, Error::Integrity(_)), "{error}");
    // The latents are still there: once the shard is, the clip goes on.
    fs::write(&last, &whole).expect("writes");
    let mut pixels = Vec::new();
    while let Some(batch) = wait(generation.next_frames()).expect("frames") {
        pixels.extend(batch.rgba);
    }
    assert!(generation.finished() && pixels == want);

    let first = files(dir.path(), Part::Transformer).remove(0);
    let whole = fs::read(&first).expect("the shard is there");
    fs::write(&first, &whole[..whole.len() / 2]).expect("writes");
    let error = clip(&engine, &request()).expect_err("half a denoiser");
    assert!(matches!(error, Error::Integrity(_)), "{error}");
    fs::write(&first, &whole).expect("writes");
    assert!(clip(&engine, &request()).expect("a clip").0 == want);
}

#[test]
fn loras_come_and_go_with_the_denoiser() {
    let (_, dir) = &models()[0];
    let manifest = read_manifest(dir.path()).expect("a manifest");
    let change = |engine: &mut Engine| {
        let lora = engine.add_lora("first", &loras::bytes(&loras::first())).expect("a LoRA");
        engine.use_loras(&[(lora, 0.8)]).expect("it is there");
        assert!(engine.use_loras(&[(lora + 1, 1.0)]).is_err(), "refused, whether the denoiser is there or not");
        lora
    };
    let mut together = Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("loads");
    let plain = {
        let engine = Rc::new(Engine::load_dir(dir.path(), DeviceChoice::Cpu).expect("loads"));
        clip(&engine, &request()).expect("a clip").0
    };
    change(&mut together);
    let (want, _) = clip(&Rc::new(together), &request()).expect("a clip");
    assert!(want != plain);

    let memory = plan(&manifest, Residency::Turns).total().get();
    let mut engine = Engine::load_dir_within(dir.path(), DeviceChoice::Cpu, None, memory, &request()).expect("loads");
    let lora = change(&mut engine);
    let mut engine = Rc::new(engine);
    assert!(clip(&engine, &request()) == Ok((want.clone(), Residency::Turns)));
    Rc::get_mut(&mut engine).expect("no clip is being made").remove_lora(lora);
    assert!(clip(&engine, &request()) == Ok((want, Residency::Turns)), "and again with a denoiser that was read anew");
    let sole = Rc::get_mut(&mut engine).expect("no clip is being made");
    sole.use_loras(&[]).expect("none");
    assert!(clip(&engine, &request()) == Ok((plain, Residency::Turns)));
}

/// A clip of the built-in model, and the most that the GPU's allocator had reserved.
fn reserved(residency: Residency) -> (Vec<u8>, u64) {
    let dir = common::root().join("model-shards");
    let device = DeviceChoice::Gpu { strict_limits: true };
    let manifest = read_manifest(&dir).expect("a manifest");
    let (size, target, text) = (manifest.default_size(), Target::Gpu, TextWeights::Streamed);
    let asked = PlanRequest { size, tokens: None, target, text, packed: false, lora_bytes: 0, residency };
    let memory = MemoryPlan::of(&manifest, &asked).expect("a plan").total().get();
    let engine = Rc::new(Engine::load_dir_within(&dir, device, None, memory, &request()).expect("loads"));
    let mut most = 0;
    let mut note = || most = most.max(engine.compute.device.memory_pool_usage().expect("a GPU tells").bytes_reserved);
    let mut pixels = Vec::new();
    note();
    let mut generation = wait(engine.begin(&request())).expect("begins");
    assert_eq!(generation.residency(), residency);
    note();
    while wait(generation.step()).expect("a step").is_some() {
        note();
    }
    while let Some(batch) = wait(generation.next_frames()).expect("frames") {
        note();
        pixels.extend(batch.rgba);
    }
    (pixels, most)
}

/// The memory of a part that has gone is given back, and so is there for the next.
#[test]
fn a_gpu_gives_back_what_a_part_took() {
    if strict().is_none() {
        return;
    }
    let [(want, together), (found, turns)] = [Residency::Together, Residency::Turns].map(reserved);
    println!("reserved: {together} bytes together, {turns} in turns");
    assert!(found == want, "another clip");
    let manifest = read_manifest(&common::root().join("model-shards")).expect("a manifest");
    let denoiser = manifest.tensors.iter().filter(|(name, _)| Part::of(name) == Some(Part::Transformer));
    let denoiser: u64 = denoiser.map(|(_, info)| info.bytes()).sum();
    // Not all of it: pages hold more than one tensor, and one that is in use stays.
    assert!(turns + denoiser * 3 / 4 < together, "{denoiser} bytes of denoiser have gone");
}

#[test]
fn a_gpu_takes_turns_too() {
    if strict().is_none() {
        return;
    }
    let device = DeviceChoice::Gpu { strict_limits: true };
    for (name, dir) in models() {
        let together = Rc::new(Engine::load_dir(dir.path(), device).expect("loads"));
        let (want, _) = clip(&together, &request()).expect("a clip");
        let manifest = read_manifest(dir.path()).expect("a manifest");
        let gpu = |residency| {
            let (size, target, text) = (manifest.default_size(), Target::Gpu, TextWeights::Streamed);
            let asked = PlanRequest { size, tokens: Some(8), target, text, packed: false, lora_bytes: 0, residency };
            MemoryPlan::of(&manifest, &asked).expect("a plan").total().get()
        };
        assert!(gpu(Residency::Turns) < gpu(Residency::Together), "{name}");
        let engine = within(&dir, device, gpu(Residency::Turns)).expect("loads");
        for _ in 0..2 {
            assert!(clip(&engine, &request()) == Ok((want.clone(), Residency::Turns)), "{name}: another clip");
        }
    }
}
