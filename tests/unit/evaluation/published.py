"""A small sample of every benchmark, in the format in which it is published."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_jsonl(path: Path, entries: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def write_parquet(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(entries)), path)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def longvideo_reason(folder: Path) -> None:
    rows = [
        {
            "problem_id": number,
            "problem": "Why does he leave?\nA. Rain\nB. Hunger\nC. A call\nD. Sleep",
            "data_type": "video",
            "problem_type": kind,
            "reasoning": "",
            "videos": f"{number}.webm",
            "answer": f"<answer>{letter}</answer>",
        }
        for number, (kind, letter) in enumerate(
            [("temporal", "B"), ("goal", "A"), ("plot", "D"), ("spatial", "C")]
        )
    ]
    write_json(folder / "longvideo_eval.json", rows)
    for number in range(4):
        touch(folder / "longvila_videos" / f"{number}.webm")


def video_mme(folder: Path) -> None:
    rows = [
        {
            "video_id": f"{number:03d}",
            "duration": duration,
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": "https://example.org",
            "videoID": f"v{number}",
            "question_id": f"{number:03d}-1",
            "task_type": "Counting Problem",
            "question": "How many moons are there?",
            "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
            "answer": letter,
        }
        for number, (duration, letter) in enumerate(
            [("short", "C"), ("medium", "A"), ("long", "D")]
        )
    ]
    write_parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    for number in range(3):
        touch(folder / "data" / f"v{number}.mp4")


def video_mme_subtitles(folder: Path) -> None:
    video_mme(folder)
    text = (
        '1\n00:00:00,000 --> 00:00:01,500\n<font color="white" size=".72c">Look up</font>\n\n'
        '2\n00:00:02,000 --> 00:00:09,000\n<font color="white" size=".72c">A moon</font>\n'
    )
    with zipfile.ZipFile(folder / "subtitle.zip", "w") as archive:
        archive.writestr("subtitle/v0.srt", text)


def longvideobench(folder: Path) -> None:
    rows = [
        {
            "id": f"{number}_0",
            "video_id": f"v{number}",
            "question": "When the man in red sits down, what does he hold?",
            "candidates": ["a cup", "a book", "a hat", "a phone", "a pen"][: 5 - number],
            "correct_choice": choice,
            "topic_category": "NP-News-Programs",
            "question_category": category,
            "level": "IntraMoment",
            "video_path": f"v{number}.mp4",
            "subtitle_path": f"v{number}_en.json",
            "duration_group": group,
            "starting_timestamp_for_subtitles": 0,
            "duration": 12.5,
        }
        for number, (choice, category, group) in enumerate(
            [(4, "S2E", 15), (1, "T3O", 3600), (0, "S2E", 60)]
        )
    ]
    write_json(folder / "lvb_val.json", rows)
    for number in range(3):
        touch(folder / "videos" / f"v{number}.mp4")


def mlvu(folder: Path) -> None:
    for task, answers in {"1_plotQA": ["red", "blue"], "4_count": ["3"]}.items():
        rows = [
            {
                "video": f"{task}_{number}.mp4",
                "duration": 480.0,
                "question": "Which one is it?",
                "candidates": ["red", "blue", "3", "none"],
                "answer": answer,
                "question_type": task[2:],
            }
            for number, answer in enumerate(answers)
        ]
        write_json(folder / "json" / f"{task}.json", rows)
        for row in rows:
            touch(folder / "video" / task / str(row["video"]))
    summary = {
        "video": "summary_0.mp4",
        "duration": 480.0,
        "question": "Summarize the video.",
        "answer": "A man walks.",
        "question_type": "summary",
    }
    write_json(folder / "json" / "9_summary.json", [summary])
    touch(folder / "video" / "9_summary" / "summary_0.mp4")


def lvbench(folder: Path) -> None:
    videos = [
        {
            "key": f"v{number}",
            "type": "sport",
            "video_info": {"duration_minutes": 61.0},
            "qa": [
                {
                    "uid": f"{number}{place}",
                    "question": "Who wins?\n(A) Red\n(B) Blue\n(C) Green\n(D) Nobody",
                    "answer": letter,
                    "question_type": ["event understanding", "reasoning"][: place + 1],
                    "time_reference": "00:10-00:20",
                }
                for place, letter in enumerate(letters)
            ],
        }
        for number, letters in enumerate(["BA", "D"])
    ]
    write_jsonl(folder / "video_info.meta.jsonl", videos)
    for number in range(2):
        touch(folder / "all_videos" / f"v{number}.mp4")


def nextqa(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ["video", "frame_count", "width", "height", "question", "answer", "qid", "type"]
    names += [f"a{number}" for number in range(5)]
    options = ["to rest", "to play", "to eat", "to sing", "to run"]
    rows = [
        ["4010069381", 369, 640, 480, "why does the boy sit down", 2, 6, "CW", *options],
        ["4010069381", 369, 640, 480, "what does he do at the end", 4, 7, "TN", *options],
        ["5296635780", 120, 640, 480, "where is this", 0, 0, "DL", *options],
    ]
    with open(folder / "test.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    write_json(folder / "map_vid_vidorID.json", {"4010069381": "1164/4010069381"})
    touch(folder / "NExTVideo" / "1164" / "4010069381.mp4")
    touch(folder / "NExTVideo" / "5296635780.mp4")


def perception_test(folder: Path) -> None:
    questions = [
        {
            "id": number,
            "question": "What does the person do?",
            "options": ["lifts it", "drops it", "hides it"],
            "answer_id": choice,
            "area": "physics",
            "reasoning": "descriptive",
            "tag": ["motion", "collision"],
        }
        for number, choice in enumerate([2, 0, 1])
    ]
    content = {
        "video_10": {"metadata": {"split": "valid"}, "mc_question": questions[:2]},
        "video_11": {"metadata": {"split": "valid"}, "mc_question": questions[2:]},
    }
    write_json(folder / "mc_question_valid.json", content)
    for name in content:
        touch(folder / "videos" / f"{name}.mp4")


def activitynet_qa(folder: Path) -> None:
    answers = ["yes", "red", "two"]
    questions = [
        {"video_name": f"v{k}", "question": "is it raining", "question_id": f"v{k}_1"}
        for k in range(3)
    ]
    write_json(folder / "test_q.json", questions)
    types = [3, 4, 7]
    found = [{"answer": answers[k], "type": types[k], "question_id": f"v{k}_1"} for k in range(3)]
    write_json(folder / "test_a.json", found[::-1])
    for number, suffix in enumerate(["mp4", "webm", "mkv"]):
        touch(folder / "all_test" / f"v_v{number}.{suffix}")


def vnbench(folder: Path) -> None:
    options = ["apple", "pear", "plum", "fig"]
    rows = [
        {
            "video": f"videos/{video}.mp4",
            "question": "Which fruit is inserted?",
            "options": options[turn:] + options[:turn],
            "gt": "plum",
            "gt_option": 0,
            "try": turn,
            "type": kind,
            "length": 30,
            "needle_time": [3.0],
        }
        for video, kind in (("a", "ret_edit"), ("b", "ord_edit"))
        for turn in range(4)
    ]
    write_json(folder / "VNBench-main-4try.json", rows)
    for video in "ab":
        touch(folder / "VNBench_new" / "videos" / f"{video}.mp4")


def video_mmmu(folder: Path) -> None:
    def row(kind: str, answer: str, options: list[str]) -> dict[str, Any]:
        return {
            "id": "validation_Clinical_Medicine_3",
            "question": "What follows?",
            "options": options,
            "answer": answer,
            "question_type": kind,
            "link_selected": "https://example.org",
            "image 1": {"bytes": b"\x89PNG", "path": "1.png"},
        }

    names = [f"option {letter}" for letter in "ABCDEFGHIJ"]
    lettered = [f"{letter}. {name}" for letter, name in zip("ABCDEFGHIJ", names, strict=True)]
    rows = {
        "Perception": row("multiple-choice", "J", lettered),
        "Comprehension": row("multiple-choice", "A", names),
        "Adaptation": row("open", "12.5", []),
    }
    for track, entry in rows.items():
        write_parquet(folder / track / "test-00000-of-00001.parquet", [entry])
    touch(folder / "Medicine" / "validation_Clinical_Medicine_3.mp4")


def daily_omni(folder: Path) -> None:
    rows = [
        {
            "Question": "What is shown when the bell rings?",
            "Choice": ["A. A dog", "B. A cat", "C. A car", "D. A tree"],
            "Answer": letter,
            "video_id": f"v{number}",
            "Type": kind,
            "video_category": "Daily Life",
            "video_duration": duration,
        }
        for number, (letter, kind, duration) in enumerate(
            [
                ("B", "AV Event Alignment", "30s"),
                ("D", "Inference", "60s"),
                ("A", "Inference", "30s"),
            ]
        )
    ]
    write_json(folder / "qa.json", rows)
    for number in range(3):
        touch(folder / "Videos" / f"v{number}" / f"v{number}_video.mp4")


def mmau(folder: Path) -> None:
    rows = [
        {
            "id": f"id-{number}",
            "audio_id": f"./test-mini-audios/id-{number}.wav",
            "question": "What makes the sound?",
            "choices": choices,
            "answer": choices[answer],
            "dataset": "AudioSet",
            "task": task,
            "split": "test-mini",
            "category": "Reasoning",
            "sub-category": "Acoustic Source Inference",
            "difficulty": "medium",
        }
        for number, (task, answer, choices) in enumerate(
            [
                ("sound", 0, ["Man", "Woman", "Child", "Robot"]),
                ("music", 3, ["Piano", "Violin", "Flute", "Drum"]),
                ("speech", 1, ["Yes", "No"]),
            ]
        )
    ]
    write_json(folder / "mmau-test-mini.json", rows)
    for row in rows:
        touch(folder / str(row["audio_id"]))


SAMPLES: dict[str, Callable[[Path], None]] = {
    "longvideo_reason": longvideo_reason,
    "video_mme": video_mme,
    "video_mme_subtitles": video_mme_subtitles,
    "longvideobench": longvideobench,
    "mlvu": mlvu,
    "lvbench": lvbench,
    "nextqa": nextqa,
    "perception_test": perception_test,
    "activitynet_qa": activitynet_qa,
    "vnbench": vnbench,
    "video_mmmu": video_mmmu,
    "daily_omni": daily_omni,
    "mmau": mmau,
}
"""What writes the sample of a benchmark into a folder."""
