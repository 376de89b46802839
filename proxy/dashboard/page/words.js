// How numbers, times and names read. Nothing here touches the page.
"use strict";

const Page = {};

Page.words = (() => {
  const whole = new Intl.NumberFormat("en");
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  const two = (number) => String(number).padStart(2, "0");

  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

  const count = (value) => (isNumber(value) ? whole.format(value) : "–");

  const brief = (value) => {
    if (!isNumber(value)) return "–";
    return Math.abs(value) < 10000 ? whole.format(value) : compact.format(value);
  };

  // For axes, whose numbers should look alike.
  const short = (value) => compact.format(value);

  const some = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

  // Seconds in words: 0.85 s, 12 s, 4 min 12 s, 2 h 5 min, 3 d 4 h.
  const seconds = (value) => {
    if (!isNumber(value)) return "–";
    if (value < 10) return `${value.toFixed(1)} s`;
    if (value < 60) return `${Math.floor(value)} s`;
    if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
    if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
    return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
  };

  const milliseconds = (value) => {
    if (!isNumber(value)) return "–";
    return value < 1000 ? `${Math.round(value)} ms` : seconds(value / 1000);
  };

  const rate = (value) => (isNumber(value) ? (value < 9.95 ? value.toFixed(1) : String(Math.round(value))) : "–");

  const size = (bytes) => {
    if (!isNumber(bytes)) return "–";
    return bytes >= 5e7 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`;
  };

  const share = (part) => {
    if (!isNumber(part)) return "–";
    return part > 0 && part < 0.01 ? "< 1 %" : `${Math.round(part * 100)} %`;
  };

  const date = (moment) => `${moment.getDate()} ${months[moment.getMonth()]}`;

  const clock = (moment) => `${two(moment.getHours())}:${two(moment.getMinutes())}`;

  // A moment as a person near it would say it: the clock alone today, the date before that.
  const moment = (text, { exact = false } = {}) => {
    const then = new Date(text);
    if (text === null || text === undefined || Number.isNaN(then.getTime())) return "–";
    const now = new Date();
    const time = exact ? `${clock(then)}:${two(then.getSeconds())}` : clock(then);
    if (then.toDateString() === now.toDateString()) return time;
    const year = then.getFullYear() === now.getFullYear() ? "" : ` ${then.getFullYear()}`;
    return `${date(then)}${year} ${time}`;
  };

  const full = (text) => {
    const then = new Date(text);
    if (Number.isNaN(then.getTime())) return String(text);
    const day = `${then.getFullYear()}-${two(then.getMonth() + 1)}-${two(then.getDate())}`;
    return `${day} ${clock(then)}:${two(then.getSeconds())}`;
  };

  const until = (text, now) => {
    const left = new Date(text).getTime() / 1000 - now;
    return left > 0 ? `unloads in ${seconds(left)}` : "unloads now";
  };

  // A bin of a distribution, such as [200, 300].
  const bin = (pair, unit) => {
    if (!Array.isArray(pair)) return "–";
    if (unit !== "ms") return `${pair[0]}–${pair[1]}`;
    return pair[1] >= 1000 ? `${pair[0] / 1000}–${pair[1] / 1000} s` : `${pair[0]}–${pair[1]} ms`;
  };

  return {
    bin,
    brief,
    clock,
    count,
    date,
    full,
    isNumber,
    milliseconds,
    moment,
    rate,
    seconds,
    share,
    short,
    size,
    some,
    until,
  };
})();
