-- Asks for a task to be cancelled. A task that nobody owns ends at once; a running one is told by
-- the answer to its owner's next write; of an unknown one the wish is kept for its first claim.
--
-- KEYS[1]  ns:{id}:task    hash        cancel_requested set, or ended
-- KEYS[2]  ns:{id}:events  stream      event `cancelled` appended when it ends here
-- KEYS[3]  ns:open         sorted set  id touched when it ends here: it stays until all is told
-- KEYS[4]  ns:wishes       sorted set  id of an unknown task added
-- ARGV     id, event tail, control channel
-- gives    the status that the task had, or 'unknown'
--
-- Removes nothing and sets no time to live: commands that do are not given to producers.
local status = redis.call('HGET', KEYS[1], 'status') or 'unknown'
local stamp = string.format('%.6f', now_s())
if status == 'queued' then
  redis.call('HSET', KEYS[1], 'cancel_requested', 1, 'status', 'cancelled',
    'ended_at', stamp, 'outcome', '{"step":0}')
  append_event(KEYS[1], KEYS[2], ARGV[2])
  redis.call('ZADD', KEYS[3], stamp, ARGV[1])
elseif status == 'running' then
  redis.call('HSET', KEYS[1], 'cancel_requested', 1)
  redis.call('PUBLISH', ARGV[3], ARGV[1])
elseif status == 'unknown' then
  redis.call('HSET', KEYS[1], 'cancel_requested', 1)
  redis.call('ZADD', KEYS[4], stamp, ARGV[1])
end
return status
