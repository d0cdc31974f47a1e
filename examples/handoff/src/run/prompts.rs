//! What is asked.

/// Short questions.
const QUESTIONS: [&str; 19] = [
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "Write a haiku about the sea.",
    "What is 7 times 6?",
    "Who wrote Romeo and Juliet?",
    "Explain in one sentence what a computer does.",
    "Translate \"good morning\" into Spanish.",
    "What do bees make?",
    "Give me a word that rhymes with cat.",
    "How many days are there in a leap year?",
    "What is the opposite of hot?",
    "Tell me a short story about a fox and a river. It should have a beginning, a middle and an end, \
     and somebody in it should learn something.",
    "List the planets of the solar system, from the sun outwards.",
    "What should I pack for a week in the mountains in October, if I want to walk every day, sleep in \
     huts, and carry everything on my own back?",
    "What is photosynthesis?",
    "Write a line of Python that prints the numbers from 1 to 10.",
    "Is water wet? Answer yes or no, and give one reason.",
    "Complete the sentence: the early bird",
];

/// The first of them.
pub(super) fn short(most: usize) -> Vec<String> {
    QUESTIONS.iter().take(most).map(|question| (*question).to_owned()).collect()
}

/// One of more than 2,000 tokens: a licence to read first.
pub(super) fn long() -> String {
    let licence = include_str!("../../../../LICENSE-APACHE");
    format!(
        "{licence}\n\nMay I use this software in a product that I sell? Answer in one sentence."
    )
}

/// All twenty, the long one last; or that many short ones.
pub(super) fn prompts(most: usize) -> Vec<String> {
    short(most).into_iter().chain((most > QUESTIONS.len()).then(long)).collect()
}

/// Prompts for the hybrid model, whose tokens are bytes: all five, the long one last; or that many short ones.
pub(super) fn bytes(most: usize) -> Vec<String> {
    short(most.min(4)).into_iter().chain((most > 4).then(long_bytes)).collect()
}

/// 2,500 of them.
pub(super) fn long_bytes() -> String {
    long().chars().filter(char::is_ascii).take(2500).collect()
}
