//! The shipped model: the engine against PyTorch on the same weights, the cost of quantizing, and that prompts matter.
//!
//! Goldens: `tests/goldens/builtin.py` on the shipped shards and on an f32 pack of the same training export.

mod common;

use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;

use common::{TempDir, floats, goldens, psnr, root};
use kinora::engine::{DeviceChoice, Engine, GenerateRequest, wait};
use kinora::model::manifest::{DType, Manifest};
use kinora::model::plan::{ClipNeeds, MemoryPlan, PlanRequest, Residency, Target, TextWeights};
use kinora::model::shards::ShardAssembler;
use kinora::pack::{Export, PackOptions, pack, read_manifest};
use kinora::selftest::relative_error;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Two clips at once would only fight for the same cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// All frames of a clip, planar `[3, height, width]` bytes each.
fn clip(engine: &Rc<Engine>, prompt: &str, seed: u64) -> Vec<Vec<u8>> {
    clip_of(engine, &GenerateRequest { prompt: prompt.into(), seed, ..Default::default() })
}

fn clip_of(engine: &Rc<Engine>, request: &GenerateRequest) -> Vec<Vec<u8>> {
    wait(async {
        let mut generation = engine.begin(request).await?;
        let area = (generation.size().width * generation.size().height) as usize;
        while generation.step().await?.is_some() {}
        let mut frames = Vec::new();
        while let Some(batch) = generation.next_frames().await? {
            for rgba in batch.rgba.chunks_exact(4 * area) {
                frames.push((0..3).flat_map(|c| (0..area).map(move |i| rgba[4 * i + c])).collect());
            }
        }
        Ok::<_, kinora::Error>(frames)
    })
    .expect("the built-in model makes a clip")
}

fn load(dir: &Path) -> Rc<Engine> {
    Rc::new(Engine::load_dir(dir, DeviceChoice::Cpu).expect("the model loads"))
}

struct Golden {
    prompt: String,
    seed: u64,
    width: Option<u32>,
    height: Option<u32>,
    file: Vec<u8>,
}

fn golden(name: &str) -> Golden {
    let file = std::fs::read(goldens().join(name)).expect("the golden is committed");
    let (_, metadata) = SafeTensors::read_metadata(&file).expect("safetensors");
    let request = &metadata.metadata().as_ref().expect("metadata")["request"];
    let request: serde_json::Value = serde_json::from_str(request).expect("json");
    let prompt = request["prompt"].as_str().expect("prompt").to_string();
    let side = |name: &str| request[name].as_u64().map(|side| side as u32);
    Golden { prompt, seed: request["seed"].as_u64().expect("seed"), width: side("width"), height: side("height"), file }
}

impl Golden {
    /// The clip that it is of, made here.
    fn clip(&self, engine: &Rc<Engine>) -> Vec<Vec<u8>> {
        let Self { prompt, seed, width, height, .. } = self;
        let prompt = prompt.clone();
        clip_of(engine, &GenerateRequest { prompt, seed: *seed, width: *width, height: *height, ..Default::default() })
    }

    /// PSNR of a clip against the golden's frames, which are every fourth of the clip.
    fn psnr(&self, clip: &[Vec<u8>]) -> f64 {
        let all = SafeTensors::deserialize(&self.file).expect("safetensors");
        let frames = all.tensor("frames").expect("frames");
        assert_eq!(frames.dtype(), Dtype::U8);
        let own: Vec<u8> = clip.iter().step_by(4).flatten().copied().collect();
        psnr(&own, frames.data())
    }
}

#[test]
fn a_whole_run_matches_pytorch_on_the_same_weights() {
    let _turn = ONE_AT_A_TIME.lock();
    let engine = load(&root().join("model-shards"));
    // The second needs the change that belongs to its size.
    for name in ["builtin.safetensors", "builtin-176x96.safetensors"] {
        matches_pytorch(&engine, &golden(name));
    }
}

fn matches_pytorch(engine: &Rc<Engine>, golden: &Golden) {
    let all = SafeTensors::deserialize(&golden.file).expect("safetensors");
    let floats_of = |name: &str| floats(&all.tensor(name).expect(name));

    let prompt = engine.tokenizer().expect("a tokenizer").encode(&golden.prompt).expect("encodes");
    let ids: Vec<u8> = prompt.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    assert_eq!(ids, all.tensor("input_ids").expect("ids").data());
    let embeddings = wait(engine.text_encoder().encode(&engine.compute, &prompt.ids)).expect("encodes");
    let error = relative_error(&embeddings, &floats_of("embeddings"));
    println!("text embeddings: relative error {error:.2e}");
    assert!(error < 1e-4);

    let noise = floats_of("noise");
    assert_eq!(kinora::latents::noise::normal(golden.seed, 0, noise.len()), noise);
    let shape: [usize; 4] = all.tensor("noise").expect("noise").shape().try_into().expect("[C, F, H, W]");
    let latents = wait(engine.sample(noise, shape, embeddings)).expect("samples");
    let error = relative_error(&latents, &floats_of("latents"));
    println!("latents after the last step: relative error {error:.2e}");
    assert!(error < 1e-4);

    let decibels = golden.psnr(&golden.clip(engine));
    println!("frames: {decibels:.1} dB");
    assert!(decibels >= 45.0);
}

#[test]
fn quantizing_keeps_the_picture() {
    let _turn = ONE_AT_A_TIME.lock();
    let golden = golden("builtin-f32.safetensors");
    let shipped = golden.psnr(&clip(&load(&root().join("model-shards")), &golden.prompt, golden.seed));
    println!("shipped against f32: {shipped:.1} dB");
    assert!(shipped >= 38.0, "{shipped:.1} dB");

    let q4 = TempDir::new();
    repack(q4.path(), DType::Q4);
    let decibels = golden.psnr(&clip(&load(q4.path()), &golden.prompt, golden.seed));
    println!("q4 against f32: {decibels:.1} dB");
    assert!(decibels >= 28.0, "{decibels:.1} dB");
    assert!(decibels < shipped, "q4 cannot be better than what it was made from");
}

/// Packs the shipped shards' weights in another format.
fn repack(out: &Path, format: DType) {
    let dir = root().join("model-shards");
    let read = |name: &str| std::fs::read(dir.join(name)).expect("the built-in model is committed");
    let text = String::from_utf8(read("manifest.json")).expect("text");
    let manifest = Manifest::parse(&text).expect("the manifest is right");
    let mut assembler = ShardAssembler::new(&manifest);
    let mut tensors = Vec::new();
    for index in assembler.missing() {
        tensors.extend(assembler.add(index, &read(&manifest.shards[index].path)).expect("the shard is right"));
    }
    let widened: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|raw| {
            let values = raw.to_f32().expect("decodes");
            (raw.name.clone(), raw.shape.clone(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = widened
        .iter()
        .map(|(name, shape, bytes)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a view")));
    let weights = safetensors::serialize(views, None).expect("weights");
    let mut model: serde_json::Value = serde_json::from_str(&text).expect("json");
    for field in ["schema_version", "shards", "tensors", "requires"] {
        model.as_object_mut().expect("an object").remove(field);
    }
    let tokenizer_json = read("tokenizer.json");
    let export = Export { model_json: &model.to_string(), tokenizer_json: &tokenizer_json, weights: &weights };
    pack(&export, out, &PackOptions { format, ..PackOptions::default() }).expect("packs");
}

/// Prompt and seed both reach the picture; that the prompt is followed, the tests below show.
#[test]
fn another_prompt_or_seed_is_another_clip() {
    let _turn = ONE_AT_A_TIME.lock();
    let engine = load(&root().join("model-shards"));
    let bytes = |prompt: &str, seed: u64| clip(&engine, prompt, seed).concat();
    let first = bytes("a red ball bounces on green grass under a blue sky", 11);
    assert!(first == bytes("a red ball bounces on green grass under a blue sky", 11), "one request, one clip");
    let seed = psnr(&first, &bytes("a red ball bounces on green grass under a blue sky", 12));
    let prompt = psnr(&first, &bytes("a yellow cube falls on snow at night", 11));
    println!("another seed: {seed:.1} dB, another prompt: {prompt:.1} dB");
    assert!(seed < 30.0 && prompt < 45.0, "another seed: {seed:.1} dB, another prompt: {prompt:.1} dB");
}

/// Mean colour (0..255) of the rows from `top` to `bottom` (0..1) over all frames of a clip.
fn mean_colour(clip: &[Vec<u8>], height: usize, top: f64, bottom: f64) -> [f64; 3] {
    let area = clip[0].len() / 3;
    let (first, last) = ((top * height as f64) as usize, (bottom * height as f64) as usize);
    let width = area / height;
    [0, 1, 2].map(|channel| {
        let values =
            clip.iter().flat_map(|frame| &frame[channel * area + first * width..channel * area + last * width]);
        let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + f64::from(*value), count + 1.0));
        sum / count
    })
}

/// Ground and sky must be those of the prompt, for several seeds.
#[test]
fn ground_and_sky_are_those_that_the_prompt_names() {
    let _turn = ONE_AT_A_TIME.lock();
    let engine = load(&root().join("model-shards"));
    let height = engine.manifest.default_size().height as usize;
    for seed in [11, 12] {
        let clip = |prompt: &str| clip(&engine, prompt, seed);
        let grass = clip("a red ball bounces on green grass under a blue sky");
        let [r, g, b] = mean_colour(&grass, height, 0.65, 1.0);
        assert!(g > 1.2 * r && g > 1.2 * b, "seed {seed}: grass is [{r:.0}, {g:.0}, {b:.0}]");
        let [r, _, b] = mean_colour(&grass, height, 0.0, 0.3);
        assert!(b > 1.2 * r, "seed {seed}: the blue sky is red {r:.0}, blue {b:.0}");

        let night = mean_colour(&clip("a yellow cube falls on snow at night"), height, 0.0, 0.3);
        assert!(night.iter().all(|&value| value < 80.0), "seed {seed}: the night sky is {night:.0?}");
        let snow = mean_colour(&clip("a blue ball stays still on snow under a blue sky"), height, 0.65, 1.0);
        assert!(snow.iter().all(|&value| value > 170.0), "seed {seed}: snow is {snow:.0?}");
        let [r, _, b] = mean_colour(&clip("a green cube rises over sand under a blue sky"), height, 0.65, 1.0);
        assert!(r > 1.3 * b, "seed {seed}: sand is red {r:.0}, blue {b:.0}");
    }
}

/// Pixels of a clip in which one channel stands out, counted for red and for blue.
fn colour(clip: &[Vec<u8>]) -> [usize; 2] {
    let mut count = [0, 0];
    for frame in clip {
        let area = frame.len() / 3;
        for i in 0..area {
            let [r, g, b] = [frame[i], frame[area + i], frame[2 * area + i]].map(i32::from);
            count[0] += usize::from(r > 90 && r > 2 * g.max(b));
            count[1] += usize::from(b > 90 && 10 * b > 17 * r && 10 * b > 17 * g);
        }
    }
    count
}

#[test]
fn the_object_has_the_colour_that_the_prompt_names() {
    let _turn = ONE_AT_A_TIME.lock();
    let engine = load(&root().join("model-shards"));
    for seed in [11, 12] {
        let red = colour(&clip(&engine, "a red ball on green grass under an overcast sky", seed));
        let blue = colour(&clip(&engine, "a blue ball on green grass under an overcast sky", seed));
        println!("seed {seed}: red prompt {red:?}, blue prompt {blue:?} (red, blue pixels)");
        assert!(red[0] > 10 * (blue[0] + 50), "red prompt {red:?}, blue prompt {blue:?}");
        assert!(blue[1] > 10 * (red[1] + 50), "red prompt {red:?}, blue prompt {blue:?}");
    }
}

#[test]
fn the_manifest_says_what_its_clips_need() {
    let manifest = read_manifest(&root().join("model-shards")).expect("the built-in model is committed");
    let text = TextWeights::usual(&manifest);
    let needs = manifest.sizes().map(|size| {
        let bytes = |target| {
            let request = PlanRequest {
                size,
                tokens: None,
                target,
                text,
                packed: false,
                lora_bytes: 0,
                residency: Residency::Together,
            };
            MemoryPlan::of(&manifest, &request).expect("a plan").in_page().get()
        };
        ClipNeeds {
            width: size.width,
            height: size.height,
            frames: size.frames,
            cpu_bytes: bytes(Target::Cpu { threads: 1 }),
            webgpu_bytes: bytes(Target::Gpu),
        }
    });
    assert_eq!(manifest.requires.clips, needs.collect::<Vec<_>>(), "the packer would write the figures on the right");
}
