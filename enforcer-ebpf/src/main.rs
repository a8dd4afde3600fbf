//! The TC programs and their maps; every decision is the library's.
#![no_std]
#![no_main]

mod maps;
mod skb;

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use bulkhead_ebpf::decide::{Hook, decide};
use maps::Kernel;
use skb::Skb;

/// "No verdict of mine": TCX's NEXT, and on a clsact filter the next one in line.
const TC_ACT_UNSPEC: i32 = -1;

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    run(ctx, Hook::FromPod)
}

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    run(ctx, Hook::ToPod)
}

#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    run(ctx, Hook::ToOverlay)
}

/// What a hook costs by itself: never attached, but measured beside the others.
#[classifier]
pub fn nothing(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[inline(always)]
fn run(ctx: TcContext, hook: Hook) -> i32 {
    if decide(&Skb::new(ctx), &Kernel, hook).is_drop() { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
