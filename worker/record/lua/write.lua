-- Writes events and checkpoints of running tasks, in order, up to the first that can't be written.
--
-- records  of each: ns:{id}:task, hash, seq incremented or checkpoint_step written; then
--          ns:{id}:events, stream, event appended; or ns:{id}:checkpoint, string, written
-- writes   of each: the token of the claim; the step of the checkpoint, '' for an event; the event's
--          tail, see append_event.lua, or the checkpoint, safetensors
-- Returns an answer for each: 0, 1 when cancellation of its task is requested, or -1 when another
-- worker has claimed the task. One that can't be written has the error as its answer, which is the
-- last one: what comes after it is not written.
local records = {unpack(KEYS, 1)}
local writes = {unpack(ARGV, 1)}
local function write(task, target, token, step, content)
  local held = redis.call('HMGET', task, 'token', 'status', 'cancel_requested')
  if held[1] ~= token or held[2] ~= 'running' then return -1 end
  if step == '' then
    append_event(task, target, content)
  else
    -- Not into the append-only file, of which checkpoints were the most; replicas get them.
    redis.set_repl(redis.REPL_REPLICA)
    redis.call('SET', target, content)
    redis.call('HSET', task, 'checkpoint_step', step)
    redis.set_repl(redis.REPL_ALL)
  end
  return held[3] and 1 or 0
end
local answers = {}
for number = 1, #records / 2 do
  local task, target = unpack(records, 2 * number - 1, 2 * number)
  local answer = answer_of(write, task, target, unpack(writes, 3 * number - 2, 3 * number))
  answers[number] = answer
  if type(answer) == 'table' then break end
end
return answers
