//! Prompts to ids and sigmas to steps, against tables computed elsewhere (`tests/goldens/make.py`).

mod common;

use common::goldens;
use kinora::denoise::sampler::{self, Sampler};
use kinora::error::Error;
use kinora::model::manifest::{Manifest, SamplerConfig, SamplerStep};
use kinora::text::tokenizer::Tokenizer;
use serde_json::{Value, json};

fn golden(name: &str) -> Value {
    let text = std::fs::read_to_string(goldens().join(name)).expect("the goldens are committed");
    serde_json::from_str(&text).expect("json")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn tokenizer() -> Tokenizer {
    let text = |name: &str| std::fs::read_to_string(goldens().join("tiny-model").join(name)).expect("committed");
    let manifest = Manifest::parse(&text("manifest.json")).expect("the manifest is right");
    Tokenizer::parse(&text("tokenizer.json"), &manifest).expect("the tokenizer fits")
}

#[test]
fn prompts_become_the_ids_of_the_reference() {
    let tokenizer = tokenizer();
    let cases = golden("tokens.json");
    let cases = cases.as_array().expect("cases");
    assert!(cases.len() >= 5);
    for case in cases {
        let prompt = case["prompt"].as_str().expect("prompt");
        let want: Vec<u32> = numbers(&case["input_ids"]).into_iter().map(|id| id as u32).collect();
        assert_eq!(tokenizer.encode(prompt).expect("encodes").ids, want, "{prompt}");
    }
}

#[test]
fn prompts_that_cannot_be_used_are_refused_and_nothing_is_cut_off() {
    let tokenizer = tokenizer();
    for prompt in ["", "  \n\t "] {
        assert_eq!(tokenizer.encode(prompt), Err(Error::EmptyPrompt));
    }
    let long = "red ball ".repeat(40);
    match tokenizer.encode(&long) {
        Err(Error::PromptTooLong { tokens, max }) => assert!(tokens > max && tokens >= 80),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tokenizer_that_was_saved_after_use_neither_cuts_nor_pads() {
    let text = |name: &str| std::fs::read_to_string(goldens().join("tiny-model").join(name)).expect("committed");
    let manifest = Manifest::parse(&text("manifest.json")).expect("the manifest is right");
    let mut saved: Value = serde_json::from_str(&text("tokenizer.json")).expect("json");
    saved["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    saved["padding"] = json!({
        "strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"
    });
    let saved = Tokenizer::parse(&saved.to_string(), &manifest).expect("the tokenizer fits");
    for prompt in ["ball", "red ball red ball red ball"] {
        assert_eq!(saved.encode(prompt), tokenizer().encode(prompt));
    }
    assert!(matches!(saved.encode(&"red ball ".repeat(40)), Err(Error::PromptTooLong { .. })));
}

fn config(step: SamplerStep) -> SamplerConfig {
    SamplerConfig {
        sigmas: vec![1.0],
        shift: 1.0,
        step,
        timestep_scale: 1000.0,
        timesteps: None,
        initial_scale: 1.0,
        guidance: 1.0,
        negative_prompt: String::new(),
        causal: None,
    }
}

#[test]
fn unipc_takes_the_steps_of_the_reference() {
    let runs = golden("unipc.json");
    // The reference starts a millionth below 1, published tables start at 1.
    for (exactly_one, tolerance) in [(false, 2e-6), (true, 2e-5)] {
        for run in runs.as_array().expect("runs") {
            let mut sigmas = numbers(&run["sigmas"]);
            if exactly_one {
                sigmas[0] = 1.0;
            }
            let mut sampler = Sampler::new(&SamplerConfig { sigmas, ..config(SamplerStep::Unipc) });
            let mut x: Vec<f32> = numbers(&run["start"]).into_iter().map(|v| v as f32).collect();
            for (index, want) in run["states"].as_array().expect("states").iter().enumerate() {
                let sigma = sampler.sigma(index) as f32;
                let velocity: Vec<f32> = x.iter().map(|x| 0.7 * x + 0.4 * sigma - 0.2).collect();
                x = sampler.advance(index, &x, &velocity, || unreachable!("unipc adds no noise")).0;
                for (got, want) in x.iter().zip(numbers(want)) {
                    assert!(
                        (f64::from(*got) - want).abs() < tolerance,
                        "step {index} of {}: {got} {want}",
                        sampler.steps()
                    );
                }
            }
        }
    }
}

#[test]
fn schedules_match_the_tables() {
    let tables = golden("sampler.json");
    let tables = tables["schedules"].as_array().expect("schedules");
    assert!(tables.len() >= 4);
    for table in tables {
        let config = SamplerConfig {
            sigmas: numbers(&table["sigmas"]),
            shift: table["shift"].as_f64().expect("shift"),
            ..config(SamplerStep::Euler)
        };
        let got = sampler::schedule(&config);
        let want = numbers(&table["shifted"]);
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "{got} {want} shift {}", config.shift);
        }
        let mut sampler = Sampler::new(&config);
        let (timesteps, deltas) = (numbers(&table["timesteps"]), numbers(&table["deltas"]));
        assert_eq!((timesteps.len(), deltas.len()), (sampler.steps(), sampler.steps()));
        for (index, (timestep, delta)) in timesteps.into_iter().zip(deltas).enumerate() {
            assert!((sampler.timestep(index) - timestep).abs() < 1e-9, "{} {timestep}", sampler.timestep(index));
            // At a velocity of 1 the way of a step is its width.
            let way = sampler.advance(index, &[0.0], &[1.0], Vec::new).0[0];
            assert!((f64::from(way) - delta).abs() < 1e-7, "{way} {delta}");
        }
    }
}

#[test]
fn single_steps_match_the_table() {
    let table = golden("sampler.json");
    let cases = table["steps"].as_array().expect("cases");
    assert!(cases.len() >= 3 && cases.iter().any(|case| case["next"] == 0.0), "the last step is among them");
    for case in cases {
        let number = |key: &str| case[key].as_f64().expect("a number");
        let one = |key: &str| [number(key) as f32];
        // 0 follows the last sigma by itself.
        let sigmas: Vec<f64> = [number("sigma"), number("next")].into_iter().filter(|&sigma| sigma > 0.0).collect();
        for (step, moved) in [(SamplerStep::Euler, "euler"), (SamplerStep::Renoise, "renoise")] {
            let mut sampler = Sampler::new(&SamplerConfig { sigmas: sigmas.clone(), ..config(step) });
            let got = sampler.advance(0, &one("x"), &one("v"), || one("fresh").to_vec());
            for (got, want) in [(got.0, number(moved)), (got.1, number("x0"))] {
                assert!((f64::from(got[0]) - want).abs() < 1e-6, "{moved} of {case}: {got:?} {want}");
            }
        }
    }
}
